//! The builtins. Each charges fuel for what it visits; `Ok(None)` is undefined.
//!
//! Wrong types and bad values are undefined, as in OPA; what OPA could answer and this machine
//! cannot is a fault, never another answer.

use super::format::{Kind, MAX_DEPTH};
use super::instruction::{Builtin, Collection};
use super::intern;
use super::machine::{Cells, Context};
use super::value::{CELL, Fault, List, Text, Value, View};

/// Calls a builtin with as many of `args` as it takes.
pub(super) fn call(
    context: &mut Context<'_, '_>,
    builtin: Builtin,
    args: [Value; 3],
) -> Result<Option<Value>, Fault> {
    use Builtin as B;
    use Value as V;
    context.fuel.take(1)?;
    let [a, b, c] = args;
    Ok(match (builtin, a, b) {
        (B::Plus, V::Int(a), V::Int(b)) => Some(V::Int(a.checked_add(b).ok_or(Fault::Overflow)?)),
        (B::Minus, V::Int(a), V::Int(b)) => Some(V::Int(a.checked_sub(b).ok_or(Fault::Overflow)?)),
        (B::Mul, V::Int(a), V::Int(b)) => Some(V::Int(a.checked_mul(b).ok_or(Fault::Overflow)?)),
        (B::Div | B::Rem, V::Int(_), V::Int(0)) => None,
        (B::Div, V::Int(a), V::Int(b)) => match a.checked_rem(b) {
            Some(0) => Some(V::Int(a.checked_div(b).ok_or(Fault::Overflow)?)),
            Some(_) => return Err(Fault::Unsupported),
            None => return Err(Fault::Overflow),
        },
        (B::Rem, V::Int(a), V::Int(b)) => Some(V::Int(a.checked_rem(b).unwrap_or(0))),
        (B::Or, V::Set(a), V::Set(b)) => Some(context.merge(a, b, [true; 3])?),
        (B::And, V::Set(a), V::Set(b)) => Some(context.merge(a, b, [false, true, false])?),
        (B::Minus, V::Set(a), V::Set(b)) => Some(context.merge(a, b, [true, false, false])?),
        (B::Member, a, b) => Some(V::bool(context.member(a, b)?)),
        (B::MemberWithKey, key, value) => {
            let found = context.lookup(c, key)?;
            Some(V::bool(match found {
                Some(found) => context.compare(found, value)?.is_eq(),
                None => false,
            }))
        }
        (B::ArrayConcat, V::Array(a), V::Array(b)) => {
            let mut cells = Cells::default();
            for list in [a, b] {
                for index in 0..list.len() {
                    let item = context.view().item(list, index);
                    cells.push(context, item)?;
                }
            }
            Some(cells.finish(context.arena, Collection::Array))
        }
        (B::Base64UrlEncode, V::String(text), _) => Some(context.base64url(text)?),
        (B::BitsAnd, V::Int(a), V::Int(b)) => Some(V::Int(a & b)),
        (B::BitsOr, V::Int(a), V::Int(b)) => Some(V::Int(a | b)),
        (B::BitsNegate, V::Int(a), _) => Some(V::Int(!a)),
        (B::Concat, V::String(separator), V::Array(list) | V::Set(list)) => {
            context.concat(separator, list)?
        }
        (B::Contains, V::String(a), V::String(b)) => Some(V::bool(context.find(a, b, 0)?.is_some())),
        (B::Count, V::Array(list) | V::Object(list) | V::Set(list), _) => Some(V::Int(list.len() as i64)),
        (B::Count, V::String(text), _) => Some(V::Int(context.characters(text)? as i64)),
        (B::EndsWith, V::String(a), V::String(b)) => {
            context.fuel.bytes(b.len())?;
            let view = context.view();
            Some(V::bool(view.bytes(a).ends_with(view.bytes(b))))
        }
        (B::StartsWith, V::String(a), V::String(b)) => {
            context.fuel.bytes(b.len())?;
            let view = context.view();
            Some(V::bool(view.bytes(a).starts_with(view.bytes(b))))
        }
        (B::IndexOf, V::String(_), V::String(b)) if b.is_empty() => None,
        (B::IndexOf, V::String(a), V::String(b)) => Some(V::Int(match context.find(a, b, 0)? {
            Some(at) => context.characters(context.part(a, 0, at))? as i64,
            None => -1,
        })),
        (B::Intersection | B::Union, V::Set(sets), _) => context.fold(builtin, sets)?,
        (B::IsNull, a, _) => Some(V::bool(a.kind() == Kind::Null)),
        (B::Lower, V::String(text), _) => Some(context.lower(text)?),
        (B::Max, V::Array(list) | V::Set(list), _) => {
            let mut greatest = None;
            for index in 0..list.len() {
                let item = context.view().item(list, index);
                if match greatest {
                    Some(greatest) => context.compare(greatest, item)?.is_lt(),
                    None => true,
                } {
                    greatest = Some(item);
                }
            }
            greatest
        }
        (B::ObjectGet, V::Object(_), V::Array(path)) => {
            let mut value = Some(a);
            for index in 0..path.len() {
                let key = context.view().item(path, index);
                value = match value {
                    Some(value) => context.lookup(value, key)?,
                    None => None,
                };
            }
            Some(value.unwrap_or(c))
        }
        (B::ObjectGet, V::Object(_), key) => Some(context.lookup(a, key)?.unwrap_or(c)),
        (B::ObjectKeys, V::Object(list), _) => {
            let mut cells = Cells::default();
            for index in 0..list.len() {
                let key = context.view().pair(list, index).0;
                cells.push(context, key)?;
            }
            Some(cells.finish(context.arena, Collection::Set))
        }
        (B::ObjectUnion, V::Object(a), V::Object(b)) => Some(context.overlay(a, b, 0)?),
        (B::Replace, V::String(text), V::String(old)) => match c {
            V::String(new) => Some(context.replace(text, old, new)?),
            _ => None,
        },
        (B::SemverCompare, V::String(a), V::String(b)) => {
            context.fuel.bytes(a.len() + b.len())?;
            let view = context.view();
            let versions = (Version::parse(view.text(a)), Version::parse(view.text(b)));
            let (Some(a), Some(b)) = versions else { return Ok(None) };
            Some(V::Int(a.compare(&b) as i64))
        }
        (B::SemverIsValid, a, _) => Some(V::bool(match a {
            V::String(text) => {
                context.fuel.bytes(text.len())?;
                Version::parse(context.view().text(text)).is_some()
            }
            _ => false,
        })),
        (B::Before, V::String(_), V::String(separator)) if separator.is_empty() => None,
        (B::Before, V::String(text), V::String(separator)) => {
            let end = context.find(text, separator, 0)?.unwrap_or(text.len());
            Some(V::String(context.part(text, 0, end)))
        }
        (B::CountBefore, _, V::String(separator)) if separator.is_empty() => None,
        (B::CountBefore, list, V::String(separator)) => Some(V::Int(context.count_before(list, separator)?)),
        (B::Split, V::String(text), V::String(separator)) => Some(context.split(text, separator)?),
        (B::Sprintf, V::String(format), V::Array(args)) => Some(context.sprintf(format, args)?),
        (B::Substring, V::String(text), V::Int(start)) => match c {
            V::Int(length) => context.substring(text, start, length)?,
            _ => None,
        },
        (B::ToNumber, V::Null, _) => Some(V::Int(0)),
        (B::ToNumber, V::False, _) => Some(V::Int(0)),
        (B::ToNumber, V::True, _) => Some(V::Int(1)),
        (B::ToNumber, V::Int(value), _) => Some(V::Int(value)),
        (B::ToNumber, V::String(text), _) => {
            context.fuel.bytes(text.len())?;
            number(context.view().bytes(text))?.map(V::Int)
        }
        (B::TrimPrefix, V::String(text), V::String(prefix)) => {
            context.fuel.bytes(prefix.len())?;
            let view = context.view();
            let starts = view.bytes(text).starts_with(view.bytes(prefix));
            let cut = if starts { prefix.len() } else { 0 };
            Some(V::String(if cut == 0 { text } else { context.part(text, cut, text.len() - cut) }))
        }
        _ => None,
    })
}

/// Where a byte is first; eight at a time.
fn position(text: &[u8], byte: u8) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = text.as_chunks::<8>();
    for (index, &word) in words.iter().enumerate() {
        // Zero where it is the byte; the lowest zero is the first to borrow.
        let other = u64::from_le_bytes(word) ^ (ONES * u64::from(byte));
        let found = other.wrapping_sub(ONES) & !other & ONES << 7;
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let found = rest.iter().position(|&other| other == byte)?;
    Some(words.len() * 8 + found)
}

/// What is before the first separator, which is not empty: all of the text if there is none.
fn before<'t>(text: &'t [u8], separator: &[u8]) -> &'t [u8] {
    let end = match separator {
        &[byte] => position(text, byte),
        _ => text.windows(separator.len()).position(|part| part == separator),
    };
    &text[..end.unwrap_or(text.len())]
}

impl Context<'_, '_> {
    /// Members of two sets: those of `a` only, of both, of `b` only, as `keep` says.
    fn merge(&mut self, a: List, b: List, keep: [bool; 3]) -> Result<Value, Fault> {
        let mut cells = Cells::default();
        let (mut i, mut j) = (0, 0);
        while i < a.len() || j < b.len() {
            let view = self.view();
            let (x, y) = (view.item(a, i.min(a.len())), view.item(b, j.min(b.len())));
            let order = match (i < a.len(), j < b.len()) {
                (true, true) => self.compare(x, y)?,
                (true, false) => core::cmp::Ordering::Less,
                _ => core::cmp::Ordering::Greater,
            };
            let (keep, value) = match order {
                core::cmp::Ordering::Less => (keep[0], x),
                core::cmp::Ordering::Equal => (keep[1], x),
                core::cmp::Ordering::Greater => (keep[2], y),
            };
            i += usize::from(order.is_le());
            j += usize::from(order.is_ge());
            self.fuel.take(1)?;
            if keep {
                cells.push(self, value)?;
            }
        }
        Ok(cells.finish(self.arena, Collection::Set))
    }

    fn fold(&mut self, builtin: Builtin, sets: List) -> Result<Option<Value>, Fault> {
        let keep = if builtin == Builtin::Union { [true; 3] } else { [false, true, false] };
        let mut result = None;
        for index in 0..sets.len() {
            let Value::Set(set) = self.view().item(sets, index) else { return Ok(None) };
            result = Some(match result {
                Some(Value::Set(so_far)) => self.merge(so_far, set, keep)?,
                _ => Value::Set(set),
            });
        }
        Ok(Some(result.unwrap_or_else(|| Cells::default().finish(self.arena, Collection::Set))))
    }

    fn member(&mut self, value: Value, collection: Value) -> Result<bool, Fault> {
        match collection {
            Value::Set(_) => Ok(self.lookup(collection, value)?.is_some()),
            Value::Array(list) | Value::Object(list) => {
                let view =
                    super::value::View { image: self.image, state: self.state, arena: self.arena.bytes() };
                for index in 0..list.len() {
                    self.fuel.take(1)?;
                    let item = view.element(collection, index).map_or(Value::Null, |(_, item)| item);
                    if view.equal(item, value, self.fuel)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    fn characters(&mut self, text: Text) -> Result<usize, Fault> {
        self.fuel.bytes(text.len())?;
        // Bytes that go on with a character are none of their own.
        Ok(self.view().bytes(text).iter().filter(|&&byte| byte & 0xc0 != 0x80).count())
    }

    /// The first place of `needle` in `text` from byte `from` on. Naive, and charged as such.
    fn find(&mut self, text: Text, needle: Text, from: usize) -> Result<Option<usize>, Fault> {
        let view = super::value::View { image: self.image, state: self.state, arena: self.arena.bytes() };
        let (text, needle) = (view.bytes(text), view.bytes(needle));
        let Some(last) = text.len().checked_sub(needle.len()) else { return Ok(None) };
        let Some(&first) = needle.first() else { return Ok((from <= last).then_some(from)) };
        let mut at = from;
        while let Some(next) =
            text.get(at..=last).and_then(|rest| rest.iter().position(|&byte| byte == first))
        {
            at += next;
            self.fuel.take(1)?;
            self.fuel.bytes(needle.len())?;
            if text.get(at..).is_some_and(|rest| rest.starts_with(needle)) {
                self.fuel.bytes(at - from)?;
                return Ok(Some(at));
            }
            at += 1;
        }
        self.fuel.bytes(text.len())?;
        Ok(None)
    }

    /// How many different parts the strings of a collection have before the first separator. The parts that came up
    /// are found in a hash table in the arena's free memory: for each place an element's number plus one, and a tag.
    fn count_before(&mut self, list: Value, separator: Text) -> Result<i64, Fault> {
        let (Value::Array(all) | Value::Object(all) | Value::Set(all)) = list else { return Ok(0) };
        let size = (2 * all.len()).next_power_of_two();
        self.fuel.bytes(size * size_of::<u32>())?;
        let (arena, memory) = self.arena.split();
        let places = memory.get_mut(..size * size_of::<u32>()).ok_or(Fault::Arena)?.as_chunks_mut().0;
        places.fill([0; size_of::<u32>()]);
        let view = View { image: self.image, state: self.state, arena };
        let separator = view.bytes(separator);
        let part = |index: usize| match view.element(list, index) {
            Some((_, Value::String(text))) => Some(before(view.bytes(text), separator)),
            _ => None,
        };
        let mut count = 0;
        for index in 0..all.len() {
            self.fuel.take(1)?;
            let Some(this) = part(index) else { continue };
            self.fuel.bytes(this.len() + separator.len())?;
            let (mut at, tag) = intern::places_of(this, size);
            // At most half of the places are taken, so there is a free one.
            loop {
                self.fuel.take(1)?;
                let Some(place) = places.get_mut(at) else { return Err(Fault::Arena) };
                let found = u32::from_le_bytes(*place);
                if found == 0 {
                    *place = (tag | (index as u32 + 1) & intern::NUMBER).to_le_bytes();
                    count += 1;
                    break;
                }
                if found & !intern::NUMBER == tag {
                    self.fuel.bytes(this.len() + separator.len())?;
                    if part((found & intern::NUMBER) as usize - 1) == Some(this) {
                        break;
                    }
                }
                at = (at + 1) & (size - 1);
            }
        }
        Ok(count)
    }

    fn concat(&mut self, separator: Text, list: List) -> Result<Option<Value>, Fault> {
        let start = self.arena.used();
        for index in 0..list.len() {
            let Value::String(text) = self.view().item(list, index) else { return Ok(None) };
            if index > 0 {
                self.append(separator)?;
            }
            self.fuel.take(1)?;
            self.append(text)?;
        }
        Ok(Some(self.arena.text_since(start)))
    }

    fn replace(&mut self, text: Text, old: Text, new: Text) -> Result<Value, Fault> {
        if old.is_empty() {
            return Err(Fault::Unsupported);
        }
        let start = self.arena.used();
        let mut from = 0;
        while let Some(at) = self.find(text, old, from)? {
            self.append(self.part(text, from, at - from))?;
            self.append(new)?;
            from = at + old.len();
        }
        if from == 0 {
            return Ok(Value::String(text));
        }
        self.append(self.part(text, from, text.len() - from))?;
        Ok(self.arena.text_since(start))
    }

    fn split(&mut self, text: Text, separator: Text) -> Result<Value, Fault> {
        let mut cells = Cells::default();
        let mut from = 0;
        if separator.is_empty() {
            while from < text.len() {
                let width = character(self.view().bytes(text), from).map_or(1, char::len_utf8);
                let part = self.part(text, from, width);
                cells.push(self, Value::String(part))?;
                from += width;
            }
        } else {
            while let Some(at) = self.find(text, separator, from)? {
                let part = self.part(text, from, at - from);
                cells.push(self, Value::String(part))?;
                from = at + separator.len();
            }
            let part = self.part(text, from, text.len() - from);
            cells.push(self, Value::String(part))?;
        }
        Ok(cells.finish(self.arena, Collection::Array))
    }

    fn substring(&mut self, text: Text, start: i64, length: i64) -> Result<Option<Value>, Fault> {
        let Ok(start) = usize::try_from(start) else { return Ok(None) };
        self.fuel.bytes(text.len())?;
        let view = self.view();
        let bytes = view.bytes(text);
        let (from, len) = if bytes.is_ascii() {
            // A character is a byte.
            let from = start.min(bytes.len());
            let rest = bytes.len() - from;
            (from, usize::try_from(length).map_or(rest, |length| length.min(rest)))
        } else {
            let string = view.text(text);
            let offset = |string: &str, characters: usize| {
                string.char_indices().nth(characters).map_or(string.len(), |(at, _)| at)
            };
            let from = offset(string, start);
            let rest = string.get(from..).unwrap_or_default();
            // A negative length is the rest of the string.
            (from, usize::try_from(length).map_or(rest.len(), |length| offset(rest, length)))
        };
        Ok(Some(Value::String(self.part(text, from, len))))
    }

    fn lower(&mut self, text: Text) -> Result<Value, Fault> {
        let start = self.arena.used();
        self.fuel.take(text.len())?;
        let mut from = 0;
        while let Some(character) = character(self.view().bytes(text), from) {
            from += character.len_utf8();
            // Where the full mapping has several characters (İ), the first is the simple one.
            let lower = character.to_lowercase().next().unwrap_or(character);
            self.arena.append(lower.encode_utf8(&mut [0; 4]).as_bytes())?;
        }
        Ok(self.arena.text_since(start))
    }

    fn base64url(&mut self, text: Text) -> Result<Value, Fault> {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let start = self.arena.used();
        self.fuel.take(text.len())?;
        for from in (0..text.len()).step_by(3) {
            let mut group = [0; 3];
            let bytes = self.view().bytes(text);
            let part = bytes.get(from..bytes.len().min(from + 3)).unwrap_or_default();
            group.iter_mut().zip(part).for_each(|(byte, &read)| *byte = read);
            let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
            let used = part.len() + 1;
            let digits = [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize]);
            let padded = core::array::from_fn(|digit| if digit < used { digits[digit] } else { b'=' });
            let padded: [u8; 4] = padded;
            self.arena.append(&padded)?;
        }
        Ok(self.arena.text_since(start))
    }

    /// The first object overlaid by the second, objects in both recursively. The recursion is
    /// bounded by MAX_DEPTH.
    fn overlay(&mut self, a: List, b: List, depth: usize) -> Result<Value, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Depth);
        }
        // Room for both; merged objects of lower levels come after it.
        let at = self.arena.reserve((a.len() + b.len()) * 2)?;
        let (mut i, mut j, mut len) = (0, 0, 0);
        while i < a.len() || j < b.len() {
            self.fuel.take(1)?;
            let view = self.view();
            let x = (i < a.len()).then(|| view.pair(a, i));
            let y = (j < b.len()).then(|| view.pair(b, j));
            let (key, value) = match (x, y) {
                (Some(x), Some(y)) => match self.compare(x.0, y.0)? {
                    core::cmp::Ordering::Less => x,
                    core::cmp::Ordering::Greater => y,
                    core::cmp::Ordering::Equal => match (x.1, y.1) {
                        (Value::Object(p), Value::Object(q)) => (x.0, self.overlay(p, q, depth + 1)?),
                        _ => y,
                    },
                },
                (Some(pair), None) | (None, Some(pair)) => pair,
                (None, None) => break,
            };
            // A key that both have is past in both.
            let from_a = match x {
                Some(x) => self.compare(x.0, key)?.is_eq(),
                None => false,
            };
            let from_b = match y {
                Some(y) => self.compare(y.0, key)?.is_eq(),
                None => false,
            };
            i += usize::from(from_a);
            j += usize::from(from_b);
            self.arena.set_cell(at + len * 2 * CELL, key);
            self.arena.set_cell(at + (len * 2 + 1) * CELL, value);
            len += 1;
        }
        Ok(Value::Object(self.arena.list(at, len)))
    }

    fn sprintf(&mut self, format: Text, args: List) -> Result<Value, Fault> {
        let start = self.arena.used();
        let (mut from, mut arg) = (0, 0);
        loop {
            let bytes = self.view().bytes(format);
            let rest = bytes.get(from..).unwrap_or_default();
            let literal = rest.iter().position(|&byte| byte == b'%');
            let verb = literal.and_then(|at| rest.get(at + 1).copied());
            self.append(self.part(format, from, literal.unwrap_or(rest.len())))?;
            let Some(literal) = literal else { break };
            from += literal + 2;
            let verb = match verb {
                Some(b'%') => {
                    self.arena.append(b"%")?;
                    continue;
                }
                Some(verb @ (b'v' | b's' | b'd')) => verb,
                _ => return Err(Fault::Unsupported),
            };
            let value = (arg < args.len()).then(|| self.view().item(args, arg));
            arg += 1;
            match (verb, value) {
                (_, None) => {
                    self.arena.append(&[b'%', b'!', verb])?;
                    self.arena.append(b"(MISSING)")?;
                }
                (b'd', Some(Value::Int(value))) => self.decimal(value)?,
                (b's', Some(Value::Int(value))) => {
                    self.arena.append(b"%!s(int64=")?;
                    self.decimal(value)?;
                    self.arena.append(b")")?;
                }
                (b'd', Some(value)) => {
                    self.arena.append(b"%!d(string=")?;
                    self.format(value, 0)?;
                    self.arena.append(b")")?;
                }
                (_, Some(value)) => self.format(value, 0)?,
            }
        }
        if arg < args.len() {
            return Err(Fault::Unsupported);
        }
        Ok(self.arena.text_since(start))
    }

    fn decimal(&mut self, value: i64) -> Result<(), Fault> {
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = value.unsigned_abs();
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        if value < 0 {
            at -= 1;
            digits[at] = b'-';
        }
        self.arena.append(&digits[at..])
    }

    /// A value as `%v` writes it: strings bare at the top and quoted inside. The recursion is bounded by
    /// MAX_DEPTH.
    fn format(&mut self, value: Value, depth: usize) -> Result<(), Fault> {
        self.fuel.take(1)?;
        if depth > MAX_DEPTH {
            return Err(Fault::Depth);
        }
        match value {
            Value::Null => self.arena.append(b"null"),
            Value::False => self.arena.append(b"false"),
            Value::True => self.arena.append(b"true"),
            Value::Int(value) => self.decimal(value),
            Value::String(text) if depth == 0 => self.append(text),
            Value::String(text) => {
                let plain = |byte: u8| (b' '..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
                if !self.view().bytes(text).iter().all(|&byte| plain(byte)) {
                    // How Go quotes other characters is not worth its tables here.
                    return Err(Fault::Unsupported);
                }
                self.arena.append(b"\"")?;
                self.append(text)?;
                self.arena.append(b"\"")
            }
            Value::Set(list) if list.is_empty() => self.arena.append(b"set()"),
            Value::Array(list) | Value::Object(list) | Value::Set(list) => {
                let array = value.kind() == Kind::Array;
                self.arena.append(if array { b"[" } else { b"{" })?;
                for index in 0..list.len() {
                    if index > 0 {
                        self.arena.append(b", ")?;
                    }
                    if value.kind() == Kind::Object {
                        let (key, value) = self.view().pair(list, index);
                        self.format(key, depth + 1)?;
                        self.arena.append(b": ")?;
                        self.format(value, depth + 1)?;
                    } else {
                        let item = self.view().item(list, index);
                        self.format(item, depth + 1)?;
                    }
                }
                self.arena.append(if array { b"]" } else { b"}" })
            }
        }
    }
}

/// The character that starts at byte `from`.
fn character(text: &[u8], from: usize) -> Option<char> {
    let width = match *text.get(from)? {
        0..0x80 => 1,
        0x80..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0.. => 4,
    };
    core::str::from_utf8(text.get(from..from + width)?).ok()?.chars().next()
}

/// A decimal integer. What else is a number for OPA (fractions, exponents, a plus sign, hexadecimal
/// floats, infinities) is a fault; the rest is undefined.
fn number(text: &[u8]) -> Result<Option<i64>, Fault> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    if !unsigned.is_empty() && unsigned.iter().all(u8::is_ascii_digit) {
        let digits = unsigned.iter().map(|digit| i64::from(digit - b'0'));
        let value = digits.into_iter().try_fold(0i64, |value, digit| {
            let value = value.checked_mul(10)?;
            if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
        });
        return value.map(Some).ok_or(Fault::Overflow);
    }
    if is_float(text) { Err(Fault::Unsupported) } else { Ok(None) }
}

/// Whether Go's `ParseFloat` takes it, or might: of hexadecimal floats and digits with underscores only the start is
/// looked at.
fn is_float(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (bool, &[u8]) {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0, text.get(count..).unwrap_or_default())
    }
    let unsigned = text.strip_prefix(b"-").or(text.strip_prefix(b"+")).unwrap_or(text);
    let named = [&b"inf"[..], b"infinity", b"nan"].iter().any(|name| unsigned.eq_ignore_ascii_case(name));
    let (whole, mut rest) = digits(unsigned);
    if named || whole && rest.iter().any(|byte| b"_xX".contains(byte)) {
        return true;
    }
    let mut some = whole;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (more, after) = digits(fraction);
        (some, rest) = (whole || more, after);
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or(rest.strip_prefix(b"E")) {
        let unsigned = exponent.strip_prefix(b"-").or(exponent.strip_prefix(b"+")).unwrap_or(exponent);
        let (power, after) = digits(unsigned);
        return some && power && after.is_empty();
    }
    some && rest.is_empty()
}

/// A semantic version as OPA reads it: a leading `v` and leading zeros are allowed.
struct Version<'t> {
    core: [u64; 3],
    pre: &'t str,
}

impl<'t> Version<'t> {
    fn parse(text: &'t str) -> Option<Version<'t>> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let identifiers = |text: &str| {
            text.split('.').all(|part| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
        };
        let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
        let (text, pre) = text.split_once('-').map_or((text, None), |(text, pre)| (text, Some(pre)));
        if ![build, pre].into_iter().flatten().all(identifiers) {
            return None;
        }
        let mut parts = text.split('.');
        let mut core = [0; 3];
        for number in &mut core {
            *number = decimal(parts.next()?)?;
        }
        parts.next().is_none().then_some(Version { core, pre: pre.unwrap_or("") })
    }

    fn compare(&self, other: &Version<'_>) -> core::cmp::Ordering {
        use core::cmp::Ordering;
        let pre = || match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            // A pre-release comes before the version.
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let (mut these, mut those) = (self.pre.split('.'), other.pre.split('.'));
                loop {
                    let order = match (these.next(), those.next()) {
                        (None, None) => return Ordering::Equal,
                        (None, Some(_)) => return Ordering::Less,
                        (Some(_), None) => return Ordering::Greater,
                        (Some(this), Some(that)) => match (decimal(this), decimal(that)) {
                            (Some(this), Some(that)) => this.cmp(&that),
                            (Some(_), None) => Ordering::Less,
                            (None, Some(_)) => Ordering::Greater,
                            (None, None) => this.cmp(that),
                        },
                    };
                    if order.is_ne() {
                        return order;
                    }
                }
            }
        };
        self.core.cmp(&other.core).then_with(pre)
    }
}

fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.bytes().try_fold(0u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}
