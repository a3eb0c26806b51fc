//! Moments, as certificates write them.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// A second of the Gregorian calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// Now.
    ///
    /// A clock before 1970 is 1970, when no certificate was valid.
    #[must_use]
    pub fn now() -> Self {
        Self::from_unix(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
    }

    /// So many seconds after 1970 began.
    #[must_use]
    pub fn from_unix(seconds: u64) -> Self {
        let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
        let leap =
            |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let mut year = 1970;
        loop {
            let length = if leap(year) { 366 } else { 365 };
            // The year 9999 is the last that certificates can name.
            if days < length || year == 9999 {
                break;
            }
            days -= length;
            year += 1;
        }
        let february = if leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            if days < length || month == 12 {
                break;
            }
            days -= length;
            month += 1;
        }
        let date = (year * 100 + month) * 100 + days.min(30) + 1;
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        Self(((date * 100 + hour) * 100 + minute) * 100 + second)
    }

    /// Reads `2023-06-01` (its start) or `2023-06-01T12:00:00Z`.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "a date like 2023-06-01, or a time like 2023-06-01T12:00:00Z".to_owned();
        let form = if text.len() == 10 { "dddd-dd-dd" } else { "dddd-dd-ddTdd:dd:ddZ" };
        let fits = text.len() == form.len()
            && text
                .bytes()
                .zip(form.bytes())
                .all(|(c, f)| if f == b'd' { c.is_ascii_digit() } else { c == f });
        if !fits {
            return Err(wrong());
        }
        let mut digits: String = text.chars().filter(char::is_ascii_digit).collect();
        if text.len() == 10 {
            digits.push_str("000000");
        }
        digits.parse().map(Self).map_err(|_| wrong())
    }

    /// The number YYYYMMDDhhmmss.
    #[must_use]
    pub const fn digits(self) -> u64 {
        self.0
    }

    /// The moment of this number.
    #[must_use]
    pub const fn from_digits(digits: u64) -> Self {
        Self(digits)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |divisor: u64, modulus: u64| self.0 / divisor % modulus;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
            part(10_000_000_000, 10_000),
            part(100_000_000, 100),
            part(1_000_000, 100),
            part(10_000, 100),
            part(100, 100),
            part(1, 100)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_669_686_956, "2022-11-29T01:55:56Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(Moment::from_unix(seconds).to_string(), text);
            assert_eq!(Moment::parse(text), Ok(Moment::from_unix(seconds)));
        }
        assert_eq!(Moment::parse("2022-11-29"), Moment::parse("2022-11-29T00:00:00Z"));
        for wrong in ["", "2022", "2022-11-29T01:55:56", "2022-11-2901:55:56ZZ", "2022-1a-29"] {
            assert!(Moment::parse(wrong).is_err(), "{wrong}");
        }
    }
}
