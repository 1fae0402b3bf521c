//! Wall-clock times in messages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A point in time with milliseconds, written as RFC 3339 in UTC: `2025-07-12T01:23:45Z`, with a fraction where it has one.
///
/// Range: the years 0 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    unix_ms: i64,
}

const MS_PER_DAY: i64 = 86_400_000;
/// 0000-01-01T00:00:00Z.
const MIN_MS: i64 = -62_167_219_200_000;
/// 9999-12-31T23:59:59.999Z.
const MAX_MS: i64 = 253_402_300_799_999;

impl Timestamp {
    /// Takes milliseconds since 1970; what lies outside of the range becomes its nearest end.
    #[must_use]
    pub fn from_unix_ms(unix_ms: i64) -> Self {
        Self { unix_ms: unix_ms.clamp(MIN_MS, MAX_MS) }
    }

    /// Returns milliseconds since 1970.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        self.unix_ms
    }

    /// Returns how many milliseconds this time is ahead of another; negative where it is behind.
    #[must_use]
    pub fn ms_after(self, other: Self) -> i64 {
        self.unix_ms - other.unix_ms
    }
}

/// Says that a text is no RFC 3339 time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time must be RFC 3339 text such as 2025-07-12T01:23:45Z")]
pub struct ParseTimestampError;

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, ParseTimestampError> {
        parse(text.as_bytes()).ok_or(ParseTimestampError)
    }
}

impl TryFrom<String> for Timestamp {
    type Error = ParseTimestampError;

    fn try_from(text: String) -> Result<Self, ParseTimestampError> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> Self {
        time.to_string()
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_of(self.unix_ms.div_euclid(MS_PER_DAY));
        let ms = self.unix_ms.rem_euclid(MS_PER_DAY);
        let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        match ms % 1_000 {
            0 => f.write_str("Z"),
            fraction => write!(f, ".{fraction:03}Z"),
        }
    }
}

/// Reads `YYYY-MM-DDTHH:MM:SS`, an optional fraction, and `Z` or `+HH:MM`.
fn parse(text: &[u8]) -> Option<Timestamp> {
    let (fixed, rest) = text.split_at_checked(19)?;
    let separators: [(usize, &[u8]); 5] = [(4, b"-"), (7, b"-"), (10, b"Tt"), (13, b":"), (16, b":")];
    if !separators.iter().all(|(at, allowed)| allowed.contains(&fixed[*at])) {
        return None;
    }
    let (year, month, day) = (number(&fixed[..4])?, number(&fixed[5..7])?, number(&fixed[8..10])?);
    let (hour, minute, second) = (number(&fixed[11..13])?, number(&fixed[14..16])?, number(&fixed[17..19])?);
    let day_fits = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    if !day_fits || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction_ms, zone) = fraction(rest)?;
    // A leap second counts as the last one before it.
    let seconds = (hour * 60 + minute) * 60 + second.min(59);
    let local_ms = days_from(year, month, day) * MS_PER_DAY + seconds * 1_000 + fraction_ms;
    let unix_ms = local_ms - offset_minutes(zone)? * 60_000;
    (MIN_MS..=MAX_MS).contains(&unix_ms).then_some(Timestamp { unix_ms })
}

/// Splits what follows the seconds into milliseconds and the zone. Of a fraction, 9 digits at most are allowed and 3 count.
fn fraction(rest: &[u8]) -> Option<(i64, &[u8])> {
    let Some(digits) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if !(1..=9).contains(&count) {
        return None;
    }
    let ms = digits[..count.min(3)].iter().fold(0, |ms, digit| ms * 10 + i64::from(digit - b'0'));
    let scale = [100, 10, 1][count.min(3) - 1];
    Some((ms * scale, &digits[count..]))
}

fn offset_minutes(zone: &[u8]) -> Option<i64> {
    match zone {
        b"Z" | b"z" => Some(0),
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            let offset = hours * 60 + minutes;
            (hours < 24 && minutes < 60).then_some(if *sign == b'-' { -offset } else { offset })
        }
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Counts days from 1970-01-01 to a date of the Gregorian calendar. Years begin in March here, so that the day that some years have
/// more is their last one.
fn days_from(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Reverses [`days_from`].
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year_of_era;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_times_are_read_and_written() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2025-07-12T01:23:45Z", 1_752_283_425_000),
            ("2000-02-29T23:59:59.999Z", 951_868_799_999),
            ("1969-12-31T23:59:59.500Z", -500),
            ("9999-12-31T23:59:59.999Z", MAX_MS),
            ("0000-01-01T00:00:00Z", MIN_MS),
        ] {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(time.unix_ms(), unix_ms, "{text}");
            assert_eq!(time.to_string(), text);
        }
    }

    #[test]
    fn zones_and_fractions_of_other_programs_are_read() {
        for text in ["2025-07-12T03:23:45+02:00", "2025-07-11T20:23:45-05:00", "2025-07-12t01:23:45.000000000z"] {
            assert_eq!(text.parse::<Timestamp>().unwrap().to_string(), "2025-07-12T01:23:45Z", "{text}");
        }
        assert_eq!("2025-07-12T01:23:45.5Z".parse::<Timestamp>().unwrap().to_string(), "2025-07-12T01:23:45.500Z");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2025-07-12",
            "2025-07-12T01:23:45",
            "2025-07-12 01:23:45Z",
            "2025-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2025-13-01T00:00:00Z",
            "2025-07-12T24:00:00Z",
            "2025-07-12T01:23:45.Z",
            "2025-07-12T01:23:45.1234567890Z",
            "2025-07-12T01:23:45+2:00",
            "2025-07-12T01:23:45Zx",
            "+025-07-12T01:23:45Z",
            "\u{ff12}025-07-12T01:23:45Z",
            "0000-01-01T00:00:00+01:00",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(ParseTimestampError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_read_back_as_written(unix_ms in MIN_MS..=MAX_MS) {
            let time = Timestamp::from_unix_ms(unix_ms);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = text.parse::<Timestamp>();
        }
    }
}
