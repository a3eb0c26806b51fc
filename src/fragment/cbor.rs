//! CBOR (RFC 8949), as strict as a signed thing has to be: lengths are definite and numbers in their shortest form, so
//! that there is one reading of the bytes. Only what COSE headers need is told apart; the rest can be skipped.

use core::str;

/// How deep the items of a value that is skipped may nest.
const MAX_DEPTH: usize = 8;

/// The bytes are not strict CBOR, or not of the expected kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

/// The major types, RFC 8949 section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Major {
    /// A number, 0 and up.
    Unsigned = 0,
    /// −1 and down; the argument is −1 minus the number.
    Negative = 1,
    /// Bytes.
    Bytes = 2,
    /// UTF-8.
    Text = 3,
    /// Items.
    Array = 4,
    /// Pairs of items.
    Map = 5,
    /// A number that says how to read the next item.
    Tag = 6,
    /// `false`, `true`, `null`, floating-point numbers.
    Simple = 7,
}

/// An item, without the items in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A number that fits.
    Int(i64),
    /// Bytes.
    Bytes(&'a [u8]),
    /// Text.
    Text(&'a str),
    /// So many items follow.
    Array(usize),
    /// So many pairs of items follow.
    Map(usize),
    /// One item follows.
    Tag(u64),
    /// Something else of no length.
    Simple,
}

/// Reads items from the front.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Invalid> {
        if self.rest.is_empty() { Ok(()) } else { Err(Invalid) }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Invalid> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Invalid)?;
        self.rest = rest;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Result<u64, Invalid> {
        Ok(self.take(width)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    /// An item's first bytes: its major type and its argument.
    fn head(&mut self) -> Result<(u8, u64), Invalid> {
        let [first] = *self.take(1)? else { return Err(Invalid) };
        let (major, short) = (first >> 5, first & 0x1f);
        // The smallest number that needs this many bytes.
        let (least, width) = match short {
            0..=23 => return Ok((major, u64::from(short))),
            24 => (24, 1),
            25 => (1 << 8, 2),
            26 => (1 << 16, 4),
            27 => (1 << 32, 8),
            // SECURITY (F05): 31 would be an indefinite length.
            _ => return Err(Invalid),
        };
        let argument = self.number(width)?;
        // A floating-point number has its width by its kind.
        let least = match (major, short) {
            (7, 24) => 32,
            (7, _) => 0,
            _ => least,
        };
        if argument < least { Err(Invalid) } else { Ok((major, argument)) }
    }

    /// The next item.
    pub fn item(&mut self) -> Result<Item<'a>, Invalid> {
        let (major, argument) = self.head()?;
        let length = || usize::try_from(argument).map_err(|_| Invalid);
        Ok(match major {
            0 => Item::Int(i64::try_from(argument).map_err(|_| Invalid)?),
            1 => Item::Int(-1 - i64::try_from(argument).map_err(|_| Invalid)?),
            2 => Item::Bytes(self.take(length()?)?),
            3 => Item::Text(str::from_utf8(self.take(length()?)?).map_err(|_| Invalid)?),
            // Each item takes at least a byte: a length that cannot be true is refused before anything is counted.
            4 => Item::Array(length().and_then(|n| if n <= self.rest.len() { Ok(n) } else { Err(Invalid) })?),
            5 => {
                Item::Map(length().and_then(|n| if n <= self.rest.len() / 2 { Ok(n) } else { Err(Invalid) })?)
            }
            6 => Item::Tag(argument),
            _ => Item::Simple,
        })
    }

    /// Bytes.
    pub fn bytes(&mut self) -> Result<&'a [u8], Invalid> {
        if let Item::Bytes(bytes) = self.item()? { Ok(bytes) } else { Err(Invalid) }
    }

    /// Text.
    pub fn text(&mut self) -> Result<&'a str, Invalid> {
        if let Item::Text(text) = self.item()? { Ok(text) } else { Err(Invalid) }
    }

    /// A number.
    pub fn int(&mut self) -> Result<i64, Invalid> {
        if let Item::Int(number) = self.item()? { Ok(number) } else { Err(Invalid) }
    }

    /// The number of items of an array.
    pub fn array(&mut self) -> Result<usize, Invalid> {
        if let Item::Array(count) = self.item()? { Ok(count) } else { Err(Invalid) }
    }

    /// The number of pairs of a map.
    pub fn map(&mut self) -> Result<usize, Invalid> {
        if let Item::Map(count) = self.item()? { Ok(count) } else { Err(Invalid) }
    }

    /// Passes over the next item and those in it.
    pub fn skip(&mut self) -> Result<(), Invalid> {
        // How many items are still to come at each depth.
        let mut open = heapless::Vec::<usize, MAX_DEPTH>::new();
        open.push(1).map_err(|_| Invalid)?;
        while let Some(count) = open.last_mut() {
            let Some(fewer) = count.checked_sub(1) else {
                open.pop();
                continue;
            };
            *count = fewer;
            let inner = match self.item()? {
                Item::Array(count) => count,
                Item::Map(pairs) => pairs * 2,
                Item::Tag(_) => 1,
                _ => continue,
            };
            open.push(inner).map_err(|_| Invalid)?;
        }
        Ok(())
    }
}

/// An item's first bytes, as [`Reader`] reads them.
pub fn head(major: Major, argument: u64) -> heapless::Vec<u8, 9> {
    let first = (major as u8) << 5;
    let (short, width) = match argument {
        0..24 => (argument as u8, 0),
        24..0x100 => (24, 1),
        0x100..0x1_0000 => (25, 2),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 8),
    };
    let bytes = argument.to_be_bytes();
    core::iter::once(&(first | short)).chain(&bytes[8 - width..]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn f05_what_is_not_the_shortest_definite_form_is_refused() {
        let refused: [&[u8]; 11] = [
            b"",
            b"\x18\x17",             // 23 in two bytes
            b"\x19\x00\xff",         // 255 in three
            b"\x1a\x00\x00\xff\xff", // 65535 in five
            b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
            b"\x5f\x41a\xff",    // indefinite bytes
            b"\x9f\x01\xff",     // an indefinite array
            b"\xbf\x01\x02\xff", // an indefinite map
            b"\x1c",             // reserved
            b"\x62\xc3\x28",     // not UTF-8
            b"\x43ab",           // cut off
        ];
        for bytes in refused {
            assert_eq!(Reader::new(bytes).skip(), Err(Invalid), "{bytes:x?}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_true_and_nesting_without_end_are_refused() {
        assert_eq!(Reader::new(b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff").item(), Err(Invalid));
        assert_eq!(Reader::new(&[0x81; 100]).skip(), Err(Invalid));
        assert_eq!(Reader::new(b"\x82\x81\xa1\x01\x02\xc1\x03").skip(), Ok(()));
    }

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(number in 0..=i64::MAX as u64) {
            let head = head(Major::Unsigned, number);
            let mut reader = Reader::new(&head);
            prop_assert_eq!(reader.int(), Ok(number as i64));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Reader::new(&bytes).skip();
        }
    }
}
