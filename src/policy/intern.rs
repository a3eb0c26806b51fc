//! The strings of an image, found by their content.
//!
//! Most strings of an honest request are strings of the policy as well. Each is looked for once, before anything is
//! decided, and takes the place of its copy: from then on it is compared with the image's other strings by where it is.
//! That changes what a decision costs, never what it is, so a string may be missing here.

use alloc::vec::Vec;

use super::format::{Const, Image, ImageError, MAX_DEPTH, Section};
use super::value::{Arena, CELL, Fault, Fuel, Text, Value};

/// A hash table of strings' numbers, open, with at least as many empty places as full ones.
#[derive(Debug)]
pub(super) struct Strings {
    /// The number plus one in the bits of an index, above it some bits of the hash; 0 is empty.
    places: Vec<u32>,
}

/// Places that are looked at. A string that would take more is left out.
const MAX_PROBES: usize = 16;
/// The bits of a place that are a number.
pub(super) const NUMBER: u32 = (1 << Const::INDEX_BITS) - 1;

impl Strings {
    pub fn new(image: &Image<'_>) -> Result<Strings, ImageError> {
        let count = image.words(Section::StringEnds);
        let size = (2 * count).next_power_of_two();
        let mut places = Vec::new();
        places.try_reserve_exact(size).map_err(|_| ImageError::Memory)?;
        places.resize(size, 0);
        for number in 0..count as u32 {
            let Some(string) = image.string(number) else { continue };
            let (start, tag) = places_of(string, size);
            let free = (start..start + MAX_PROBES).map(|at| at & (size - 1)).find(|&at| places[at] == 0);
            // The last number of all would not fit beside an empty place.
            if let Some(place) = free.and_then(|at| places.get_mut(at)).filter(|_| number < NUMBER) {
                *place = tag | (number + 1);
            }
        }
        Ok(Strings { places })
    }

    /// The string's number.
    pub fn number(&self, image: &Image<'_>, string: &[u8], fuel: &mut Fuel) -> Result<Option<u32>, Fault> {
        fuel.bytes(string.len())?;
        let mask = self.places.len().wrapping_sub(1);
        let (start, tag) = places_of(string, self.places.len());
        for at in start..start + MAX_PROBES {
            fuel.take(1)?;
            match self.places.get(at & mask) {
                None | Some(0) => return Ok(None),
                Some(place) if place & !NUMBER == tag => {
                    let number = (place & NUMBER) - 1;
                    if image.string(number) == Some(string) {
                        return Ok(Some(number));
                    }
                }
                Some(_) => {}
            }
        }
        Ok(None)
    }

    /// A value of the arena, its strings replaced by those of the image, in it and in all that it has in the arena.
    /// Keys stay as they are.
    pub fn intern(
        &self,
        image: &Image<'_>,
        arena: &mut Arena<'_>,
        value: Value,
        fuel: &mut Fuel,
        depth: usize,
    ) -> Result<Value, Fault> {
        let Some(at) = value.arena_start().filter(|_| depth <= MAX_DEPTH) else { return Ok(value) };
        let (first, stride, count) = match value {
            Value::String(text) => return Ok(self.interned(image, arena, at, text, fuel)?.unwrap_or(value)),
            Value::Array(list) | Value::Set(list) => (at, CELL, list.len()),
            Value::Object(list) => (at + CELL, 2 * CELL, list.len()),
            _ => return Ok(value),
        };
        fuel.take(count)?;
        for index in 0..count {
            let cell = first + index * stride;
            let old = arena.cell(cell);
            let Some(at) = old.arena_start() else { continue };
            match old {
                // Most are strings: they need no call of their own.
                Value::String(text) => {
                    if let Some(new) = self.interned(image, arena, at, text, fuel)? {
                        arena.set_cell(cell, new);
                    }
                }
                // What is in them changes where it is.
                _ => {
                    self.intern(image, arena, old, fuel, depth + 1)?;
                }
            }
        }
        Ok(value)
    }

    /// The image's string that has the content of this one, which starts there in the arena.
    #[inline]
    fn interned(
        &self,
        image: &Image<'_>,
        arena: &Arena<'_>,
        at: usize,
        text: Text,
        fuel: &mut Fuel,
    ) -> Result<Option<Value>, Fault> {
        let bytes = arena.bytes().get(at..at + text.len()).unwrap_or_default();
        let found = self.number(image, bytes, fuel)?;
        Ok(found.map(|number| Value::String(Text::constant(number, text.len() as u32))))
    }
}

/// Where a string is looked for first in a table of this size, a power of two, and its tag.
pub(super) fn places_of(string: &[u8], size: usize) -> (usize, u32) {
    let hash = hash(string);
    ((hash >> 32) as usize & size.wrapping_sub(1), hash as u32 & !NUMBER)
}

/// Eight bytes at a time, the last eight perhaps a second time. Who chooses strings to collide makes a table slower for
/// himself: the image's are its owner's, and a request's are not in the table.
fn hash(string: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let product = (hash ^ word).wrapping_mul(FACTOR);
        product ^ product >> 29
    };
    let mut hash = string.len() as u64;
    match string.last_chunk() {
        Some(&last) => {
            for &word in string.as_chunks::<8>().0 {
                hash = mix(hash, u64::from_le_bytes(word));
            }
            hash = mix(hash, u64::from_le_bytes(last));
        }
        None => {
            let word = string.iter().fold(0, |word, &byte| word << 8 | u64::from(byte));
            hash = mix(hash, word);
        }
    }
    mix(hash, 0)
}

#[cfg(test)]
mod tests {
    use super::super::builder::{Builder, FunctionBuilder};
    use super::super::engine::Engine;
    use super::super::instruction::Instruction;
    use super::*;
    use alloc::format;

    /// An image with so many strings.
    fn image(strings: usize) -> Vec<u8> {
        let mut builder = Builder::new(1);
        let mut code = FunctionBuilder::new("main", 0);
        for number in 0..strings {
            let dst = code.register();
            let value = builder.string(&format!("string {number}"));
            code.emit(Instruction::Const { dst, value });
        }
        let main = builder.function(code);
        builder.entry("main", main).unwrap();
        builder.finish().unwrap()
    }

    #[test]
    fn strings_of_the_image_are_found_and_no_others() {
        let image = image(200);
        let image = Image::read(&image).unwrap();
        let strings = Strings::new(&image).unwrap();
        let mut fuel = Fuel(1 << 20);
        let mut missing = 0;
        for number in 0..image.words(Section::StringEnds) as u32 {
            let found = strings.number(&image, image.string(number).unwrap(), &mut fuel).unwrap();
            missing += usize::from(found.is_none());
            assert!(found.is_none_or(|found| found == number));
        }
        assert!(missing < 3, "{missing} of 200 are not found");
        for other in ["", "string", "string 200", "string 1 ", "\0", "main\0"] {
            assert_eq!(strings.number(&image, other.as_bytes(), &mut fuel), Ok(None), "{other:?}");
        }
    }

    #[test]
    fn a_value_stays_the_same_and_its_strings_are_the_images() {
        let image = image(20);
        let engine = Engine::with_empty_state(&image).unwrap();
        let image = engine.image();
        let strings = Strings::new(image).unwrap();
        let mut memory = [0; 4096];
        let mut arena = Arena::new(&mut memory);
        let list = arena.strings(["string 1", "another", "string 2"].into_iter()).unwrap();
        let alone = arena.string("string 3").unwrap();
        let value = arena.object(&[("list", list), ("string 4", alone)]).unwrap();
        let mut fuel = Fuel(1000);
        let value = strings.intern(image, &mut arena, value, &mut fuel, 0).unwrap();
        assert!(fuel.0 < 1000);
        let view = engine.view(&arena);
        let list = view.field(value, "list").unwrap();
        let item = |index| view.element(list, index).unwrap().1;
        let (Value::String(first), Value::String(second)) = (item(0), item(1)) else { panic!() };
        assert_eq!((view.text(first), view.text(second)), ("string 1", "another"));
        assert!(item(0).is_constant() && !item(1).is_constant() && item(2).is_constant());
        let Some(alone @ Value::String(text)) = view.field(value, "string 4") else { panic!() };
        assert!(alone.is_constant() && view.text(text) == "string 3");
        // It costs steps, and ends with them.
        let again = arena.strings(["string 1"].into_iter()).unwrap();
        assert!(matches!(strings.intern(image, &mut arena, again, &mut Fuel(1), 0), Err(Fault::Fuel)));
    }
}
