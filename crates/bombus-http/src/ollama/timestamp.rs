//! Times as this dialect writes them: RFC 3339, in UTC.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What stands for a time that is not known; clients in Go know it as theirs for that.
const UNKNOWN: &str = "0001-01-01T00:00:00Z";
/// What stands for a time that never comes.
pub(super) const NEVER: &str = "2999-12-31T23:59:59Z";

/// Writes the current time.
pub(super) fn now() -> String {
    write(OffsetDateTime::now_utc())
}

/// Writes a time in seconds since the Unix epoch; 0 stands for one that is not known.
pub(super) fn of_unix(seconds: u64) -> String {
    let known = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0);
    let time = known.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(|| UNKNOWN.to_owned(), write)
}

fn write(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("years up to 9999 have this form")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_clients_read_them() {
        assert_eq!(of_unix(1_700_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(of_unix(0), UNKNOWN);
        assert_eq!(of_unix(u64::MAX), UNKNOWN);
    }
}
