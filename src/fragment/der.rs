//! DER (ITU-T X.690), as far as certificates need it. Lengths are definite and in their shortest form, tags are of one
//! byte, numbers are in their shortest form; everything else is refused.

use alloc::vec::Vec;

/// The bytes are not DER, or not what is expected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid;

/// Tags that certificates use.
#[allow(missing_docs, reason = "X.680 names them")]
pub mod tag {
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const NULL: u8 = 0x05;
    pub const OID: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const PRINTABLE_STRING: u8 = 0x13;
    pub const IA5_STRING: u8 = 0x16;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
}

/// Context-specific tag `[number]` around another value.
pub const fn explicit(number: u8) -> u8 {
    0xa0 | number
}

/// Context-specific tag `[number]` in the place of another.
pub const fn implicit(number: u8) -> u8 {
    0x80 | number
}

/// A value: its tag, its content, and both with the length between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    /// Its tag.
    pub tag: u8,
    /// Its content.
    pub content: &'a [u8],
    /// All of its bytes.
    pub whole: &'a [u8],
}

/// Reads values from the front.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), Invalid> {
        if self.is_at_end() { Ok(()) } else { Err(Invalid) }
    }

    /// The next value.
    pub fn value(&mut self) -> Result<Value<'a>, Invalid> {
        let all = self.rest;
        let (&[tag, first], mut rest) = all.split_first_chunk().ok_or(Invalid)?;
        // A tag number of more than one byte.
        if tag & 0x1f == 0x1f {
            return Err(Invalid);
        }
        let length = match first {
            0..=0x7f => usize::from(first),
            0x81 => {
                let (&[length], after) = rest.split_first_chunk().ok_or(Invalid)?;
                rest = after;
                usize::from(length)
            }
            0x82 => {
                let (&length, after) = rest.split_first_chunk().ok_or(Invalid)?;
                rest = after;
                usize::from(u16::from_be_bytes(length))
            }
            // Longer than anything here, or indefinite.
            _ => return Err(Invalid),
        };
        let shortest = match first {
            0x81 => length >= 0x80,
            0x82 => length >= 0x100,
            _ => true,
        };
        let (content, rest) = rest.split_at_checked(length).ok_or(Invalid)?;
        if !shortest {
            return Err(Invalid);
        }
        self.rest = rest;
        let whole = all.get(..all.len() - rest.len()).ok_or(Invalid)?;
        Ok(Value { tag, content, whole })
    }

    /// The next value, which has this tag.
    pub fn expect(&mut self, tag: u8) -> Result<Value<'a>, Invalid> {
        self.value().and_then(|value| if value.tag == tag { Ok(value) } else { Err(Invalid) })
    }

    /// The next value if it has this tag.
    pub fn optional(&mut self, tag: u8) -> Result<Option<Value<'a>>, Invalid> {
        if self.rest.first() == Some(&tag) { self.value().map(Some) } else { Ok(None) }
    }

    /// What is in the next value, which has this tag.
    pub fn inside(&mut self, tag: u8) -> Result<Reader<'a>, Invalid> {
        Ok(Reader::new(self.expect(tag)?.content))
    }

    /// A number, 0 and up: its bytes without leading zeros.
    pub fn unsigned(&mut self) -> Result<&'a [u8], Invalid> {
        match self.expect(tag::INTEGER)?.content {
            [0] => Ok(&[]),
            [0, high, ..] if high & 0x80 == 0 => Err(Invalid),
            [0, rest @ ..] => Ok(rest),
            bytes @ [first, ..] if first & 0x80 == 0 => Ok(bytes),
            _ => Err(Invalid),
        }
    }

    /// A truth value that is false where it is not there.
    pub fn flag(&mut self) -> Result<bool, Invalid> {
        match self.optional(tag::BOOLEAN)?.map(|value| value.content) {
            None | Some([0]) => Ok(false),
            Some([0xff]) => Ok(true),
            Some(_) => Err(Invalid),
        }
    }

    /// Whole bytes of a bit string.
    pub fn bits(&mut self) -> Result<&'a [u8], Invalid> {
        match self.expect(tag::BIT_STRING)?.content {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(Invalid),
        }
    }

    /// A moment, as the number YYYYMMDDhhmmss (RFC 5280 section 4.1.2.5: whole seconds, Zulu).
    pub fn time(&mut self) -> Result<u64, Invalid> {
        let Value { tag, content, .. } = self.value()?;
        let Some((b'Z', digits)) = content.split_last() else { return Err(Invalid) };
        let number = digits.iter().try_fold(0, |number: u64, &digit| {
            let digit = char::from(digit).to_digit(10).ok_or(Invalid)?;
            Ok(number * 10 + u64::from(digit))
        })?;
        const CENTURY: u64 = 1_000_000_000_000;
        match (tag, digits.len()) {
            (tag::GENERALIZED_TIME, 14) => Ok(number),
            (tag::UTC_TIME, 12) if number / (CENTURY / 100) < 50 => Ok(20 * CENTURY + number),
            (tag::UTC_TIME, 12) => Ok(19 * CENTURY + number),
            _ => Err(Invalid),
        }
    }
}

/// The content of an object identifier that is written with dots; `None` if it is not written so, or not in one way.
pub fn oid(text: &str) -> Option<Vec<u8>> {
    let arc = |text: &str| text.parse::<u64>().ok().filter(|number| alloc::format!("{number}") == text);
    let mut arcs = text.split('.').map(arc);
    let (first, second) = (arcs.next()??, arcs.next()??);
    if first > 2 || first < 2 && second > 39 {
        return None;
    }
    let mut bytes = Vec::new();
    for arc in core::iter::once(second.checked_add(first * 40)).chain(arcs) {
        let arc = arc?;
        let groups = (64 - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let more = if group > 0 { 0x80 } else { 0 };
            bytes.push((arc >> (7 * group)) as u8 & 0x7f | more);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn f05_what_is_not_the_shortest_definite_form_is_refused() {
        for bytes in [
            &b""[..],
            b"\x30",
            b"\x30\x80\x00\x00",      // indefinite
            b"\x04\x81\x01a",         // a short length in two bytes
            b"\x04\x82\x00\x80",      // a length of one byte in two
            b"\x04\x02a",             // cut off
            b"\x1f\x81\x01\x00",      // a long tag
            b"\x04\x83\x00\x00\x01a", // a length of three bytes
        ] {
            assert_eq!(Reader::new(bytes).value(), Err(Invalid), "{bytes:x?}");
        }
        for bytes in [&b"\x02\x00"[..], b"\x02\x01\xff", b"\x02\x02\x00\x01"] {
            assert_eq!(Reader::new(bytes).unsigned(), Err(Invalid), "{bytes:x?}");
        }
        assert_eq!(Reader::new(b"\x02\x02\x00\x80").unsigned(), Ok(&[0x80][..]));
        assert_eq!(Reader::new(b"\x02\x01\x00").unsigned(), Ok(&[][..]));
    }

    #[test]
    fn times_are_numbers_in_their_order() {
        let time = |bytes: &[u8]| Reader::new(bytes).time();
        assert_eq!(time(b"\x17\x0d491231235959Z"), Ok(20491231235959));
        assert_eq!(time(b"\x17\x0d500101000000Z"), Ok(19500101000000));
        assert_eq!(time(b"\x18\x0f20500101000000Z"), Ok(20500101000000));
        assert_eq!(time(b"\x17\x0b4912312359Z"), Err(Invalid));
        assert_eq!(time(b"\x18\x1320500101000000+0000"), Err(Invalid));
    }

    #[test]
    fn object_identifiers_are_written_in_one_way() {
        assert_eq!(oid("1.3.6.1.5.5.7.3.3").unwrap(), [0x2b, 6, 1, 5, 5, 7, 3, 3]);
        assert_eq!(oid("1.2.840.10045.2.1").unwrap(), [0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]);
        assert_eq!(oid("2.999").unwrap(), [0x88, 0x37]);
        for text in ["", "1", "1.", "1.40", "3.1", "1.03", "1.+3", "1.3.", "1..3", "1.3.18446744073709551616"]
        {
            assert_eq!(oid(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            while reader.value().is_ok() {}
            let _ = (Reader::new(&bytes).unsigned(), Reader::new(&bytes).time(), Reader::new(&bytes).flag());
        }
    }
}
