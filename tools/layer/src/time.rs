//! Points in time, between tar and ext4.

use anyhow::{Context as _, Result};
use parma_guest::target::ext4::InodeTime;

/// Go's zero time, the first of January of the year 1, which the reference takes for "not set".
const GO_ZERO: i64 = -62_135_596_800;
const NANOS: i64 = 1_000_000_000;

/// Seconds since 1970 and nanoseconds after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    seconds: i64,
    /// Below 10^9.
    nanos: u32,
}

impl Time {
    /// `nanos` may be negative, and may be more than a second.
    #[must_use]
    pub fn new(seconds: i64, nanos: i64) -> Self {
        let nanos_in_second = nanos.rem_euclid(NANOS);
        Self { seconds: seconds.wrapping_add(nanos.div_euclid(NANOS)), nanos: nanos_in_second as u32 }
    }

    /// Parses a PAX time: decimal seconds, perhaps negative, and a fraction whose digits after the ninth are
    /// dropped.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse_pax(text: &[u8]) -> Result<Self> {
        let malformed = || format!("malformed: time \"{}\"", text.escape_ascii());
        let text = str::from_utf8(text).ok().with_context(malformed)?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().ok().with_context(malformed)?;
        let digits =
            fraction.bytes().all(|c| c.is_ascii_digit()).then_some(fraction).with_context(malformed)?;
        let nanos = digits
            .bytes()
            .chain(std::iter::repeat(b'0'))
            .take(9)
            .fold(0, |n, c| n * 10 + i64::from(c - b'0'));
        Ok(Self::new(seconds, if whole.starts_with('-') { -nanos } else { nanos }))
    }
}

/// A time as the reference writes it into an inode. Negative seconds keep their sign bits, which makes the
/// extra half all ones (e2fsck remarks on it).
#[must_use]
pub fn to_inode(time: Option<Time>) -> InodeTime {
    let Some(Time { seconds, nanos }) = time.filter(|t| *t != Time::new(GO_ZERO, 0)) else {
        return InodeTime(0);
    };
    InodeTime(match seconds {
        ..-0x8000_0000 => 0x8000_0000,
        0x3_8000_0000.. => 0x3_7fff_ffff,
        _ => seconds.cast_unsigned() | u64::from(nanos) << 34,
    })
}

/// The reverse, as the reference does it where it copies a directory's times: not exact for negative seconds.
#[must_use]
pub fn from_inode(time: InodeTime) -> Option<Time> {
    let seconds = (time.0 & 0x3_ffff_ffff).cast_signed();
    let seconds = match seconds {
        0x8000_0000..=0xffff_ffff => seconds - 0x1_0000_0000,
        _ => seconds,
    };
    (time.0 != 0).then(|| Time::new(seconds, (time.0 >> 34).cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pax_times_have_a_sign_and_nine_digits_at_most() {
        for (text, seconds, nanos) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("-1.5", -2, 500_000_000),
            ("7.1234567899", 7, 123_456_789),
            ("7.", 7, 0),
        ] {
            assert_eq!(Time::parse_pax(text.as_bytes()).unwrap(), Time { seconds, nanos }, "{text}");
        }
        for bad in ["", "x", "1.5x", "1,5", ".5", "99999999999999999999"] {
            assert!(Time::parse_pax(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_outside_of_what_an_inode_holds_are_clamped() {
        let inode = |seconds| to_inode(Some(Time::new(seconds, 0))).0;
        assert_eq!(inode(0x3_7fff_ffff), 0x3_7fff_ffff);
        assert_eq!(inode(0x3_8000_0000), 0x3_7fff_ffff);
        assert_eq!(inode(-0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(inode(-0x8000_0001), 0x8000_0000);
        assert_eq!(inode(GO_ZERO), 0);
        assert_eq!(to_inode(None), InodeTime(0));
    }
}
