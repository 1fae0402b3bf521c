//! Where the text of an answer goes as it comes.

use std::io::IsTerminal;

use anyhow::Result;

use super::output;
use crate::printable;

mod markdown;
mod outline;
mod render;

use markdown::Markdown;

/// What shows an answer.
pub(super) enum Screen {
    /// Nothing does: the answer is printed as JSON when it is whole.
    Silent,
    /// The text as it is: stdout is read by a program.
    Plain {
        /// Whether the last line is ended.
        at_line_start: bool,
    },
    /// A terminal, with the text as it is but for characters that would control it.
    Terminal {
        /// Whether the last line is ended.
        at_line_start: bool,
    },
    /// A terminal, with Markdown made readable.
    Markdown(Box<Markdown>),
}

impl Screen {
    /// Takes stdout as it is.
    pub(super) fn plain() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Terminal { at_line_start: true }
        } else {
            Self::Plain { at_line_start: true }
        }
    }

    /// Takes stdout, and makes Markdown readable where it is a terminal that can do so.
    pub(super) fn readable() -> Self {
        let terminal = console::Term::stdout();
        if terminal.features().is_attended() && !terminal.features().is_msys_tty() && !console::is_dumb() {
            Self::Markdown(Box::new(Markdown::new(console::colors_enabled())))
        } else {
            Self::plain()
        }
    }

    /// Shows more of the answer. Returns false where nobody reads it any more.
    pub(super) fn text(&mut self, text: &str) -> Result<bool> {
        match self {
            Self::Silent => Ok(true),
            Self::Plain { at_line_start } => {
                *at_line_start = ends_a_line(text, *at_line_start);
                output::print_piece(text)
            }
            Self::Terminal { at_line_start } => {
                let text = printable::lines(text);
                *at_line_start = ends_a_line(&text, *at_line_start);
                output::print_piece(&text)
            }
            Self::Markdown(markdown) => output::print_piece(&markdown.push(&printable::lines(text), size())),
        }
    }

    /// Shows more of what the model thinks before it answers; only where a person reads along.
    pub(super) fn thought(&mut self, text: &str) -> Result<bool> {
        match self {
            Self::Markdown(markdown) => output::print_piece(&markdown.push_thought(&printable::lines(text))),
            Self::Silent | Self::Plain { .. } | Self::Terminal { .. } => Ok(true),
        }
    }

    /// Ends the answer: what comes next begins on a line of its own. The screen can be used for another answer.
    pub(super) fn end(&mut self) -> Result<()> {
        match self {
            Self::Silent => Ok(()),
            Self::Plain { at_line_start } | Self::Terminal { at_line_start } => {
                if std::mem::replace(at_line_start, true) { Ok(()) } else { output::print("\n") }
            }
            Self::Markdown(markdown) => output::print(&markdown.end(size())),
        }
    }
}

fn ends_a_line(text: &str, before: bool) -> bool {
    if text.is_empty() { before } else { text.ends_with('\n') }
}

/// Size of the terminal in characters.
#[derive(Debug, Clone, Copy)]
struct Size {
    columns: usize,
    rows: usize,
}

fn size() -> Size {
    let (rows, columns) = console::Term::stdout().size();
    Size { columns: usize::from(columns).max(20), rows: usize::from(rows).max(2) }
}
