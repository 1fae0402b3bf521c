//! How commands print data on stdout.

use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;
use time::OffsetDateTime;

use crate::printable::one_line;

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

/// What a command shows again whenever it changes.
#[derive(Default)]
pub(super) struct Watched {
    begun: bool,
}

impl Watched {
    /// Shows the present state: on a terminal in place of the one before, elsewhere behind it, with an empty line between where `apart`. Returns
    /// false where nobody reads it any more.
    pub(super) fn show(&mut self, shown: &str, on_terminal: bool, apart: bool) -> Result<bool> {
        let first = !std::mem::replace(&mut self.begun, true);
        if on_terminal {
            // Home, then each line to its end, then the rest of the screen: nothing flickers.
            let clear = if first { "\u{1b}[2J" } else { "" };
            return print_piece(&format!("{clear}\u{1b}[H{}\u{1b}[J", shown.replace('\n', "\u{1b}[K\n")));
        }
        print_piece(&if first || !apart { shown.to_owned() } else { format!("\n{shown}") })
    }
}

/// Prints a value as indented JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value).context("the result has no JSON form")?))
}

/// Lays rows out in columns; nothing at all without rows. No cell can control the terminal or leave its line.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = rows.map(|row| row.map(|cell| one_line(&cell)));
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

/// Columns that a text may have: those of the terminal, between 60 and 120. In a pipe lines are not broken, so that they can be searched.
pub(super) fn width() -> usize {
    let terminal = console::Term::stdout();
    if !terminal.is_term() {
        return usize::MAX;
    }
    terminal.size_checked().map_or(80, |(_, columns)| usize::from(columns).clamp(60, 120))
}

/// Writes words after a beginning, in lines of at most so many columns; further lines are indented by the beginning's width. A word
/// that is longer than a line stays whole, so that it can be copied.
pub(super) fn wrapped(beginning: &str, words: &str, width: usize) -> String {
    let indent = beginning.chars().count();
    let mut text = beginning.to_owned();
    let mut column = indent;
    for (index, word) in words.split_whitespace().enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
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
    fn a_cell_of_a_table_cannot_control_the_terminal() {
        let row = ["bad \u{1b}[31mRED\u{1b}[2J\nthing".to_owned(), "1".to_owned()];
        assert_eq!(table(["WHY", "N"], std::iter::once(row)), "WHY                  N\nbad [31mRED[2Jthing  1\n");
    }

    #[test]
    fn words_are_wrapped_behind_their_beginning() {
        assert_eq!(wrapped("a: ", "one two three", 10), "a: one two\n   three\n");
        assert_eq!(wrapped("a: ", "a-very-long-word b", 10), "a: a-very-long-word\n   b\n");
        assert_eq!(wrapped("a: ", "", 10), "a:\n");
    }

    #[test]
    fn days_are_counted_in_utc() {
        assert_eq!(date(951_782_400), "2000-02-29");
    }
}
