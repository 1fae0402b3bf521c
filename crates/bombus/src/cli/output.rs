//! How commands print data on stdout.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use time::OffsetDateTime;

/// Prints a text.
pub(super) fn print(text: &str) -> Result<()> {
    print_piece(text).map(|_| ())
}

/// Prints a piece of a text at once. Returns false where nobody reads it any more (`bombus ask ... | head -1`), which is no error.
pub(super) fn print_piece(text: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("stdout cannot be written"),
    }
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value).context("the result has no JSON form")?))
}

/// Lays rows out in columns; nothing at all without rows.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    if rows.len() == 1 {
        return String::new();
    }
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// Writes a size as people read it.
pub(super) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

/// Writes a day as YYYY-MM-DD, in UTC.
pub(super) fn date(unix_s: u64) -> String {
    let time = i64::try_from(unix_s).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(|| "-".to_owned(), |time| time.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), "22".to_owned()]];
        assert_eq!(table(["X", "YY"], rows.into_iter()), "X     YY\na     1\nlong  22\n");
        assert_eq!(table(["X"], std::iter::empty()), "");
    }

    #[test]
    fn days_are_counted_in_utc() {
        assert_eq!(date(951_782_400), "2000-02-29");
    }
}
