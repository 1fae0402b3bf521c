use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context, Result};
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, CompletionType, Config, Editor, Helper};
use tokio::sync::mpsc;

use super::command::{NAMES, is_open};
use crate::failure::{Exit, Failure};

/// What stands before what a person types.
const PROMPT: &str = ">>> ";
/// Questions that the history keeps.
const HISTORY_MAX: usize = 1_000;
/// Largest turn that is read from a pipe.
const TURN_BYTES_MAX: u64 = 16 << 20;

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// A turn: a line, or several in quotes.
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Nothing more comes.
    End,
}

/// Where the turns come from: a thread that waits for them, since both a line editor and a pipe block.
pub(super) struct Input {
    /// Lets the thread read the next turn.
    ask: SyncSender<()>,
    said: mpsc::Receiver<Result<Said>>,
    /// Whether the thread is reading: a wait that was given up goes on with the same turn.
    asked: bool,
}

impl Input {
    /// Reads from the terminal, where a person has an editor with this file as the history and these names of models to complete.
    pub(super) fn terminal(history: PathBuf, models: Vec<String>) -> Result<Self> {
        let mut editor = editor(&history, models).context("the line editor cannot be set up")?;
        Self::start(move || read_line(&mut editor, &history))
    }

    /// Reads one turn from each line of stdin.
    pub(super) fn lines() -> Result<Self> {
        Self::start(|| read_turn(&mut std::io::stdin().lock()))
    }

    /// Starts the thread. It ends with the program, or with either channel.
    fn start(mut read: impl FnMut() -> Result<Said> + Send + 'static) -> Result<Self> {
        let (ask, asked) = sync_channel::<()>(1);
        let (sender, said) = mpsc::channel(1);
        let work = move || {
            while asked.recv().is_ok() && sender.blocking_send(read()).is_ok() {}
        };
        std::thread::Builder::new().name("input".to_owned()).spawn(work).context("the input has no thread")?;
        Ok(Self { ask, said, asked: false })
    }

    /// Waits for the next turn. It is safe to drop the wait and wait again.
    pub(super) async fn next(&mut self) -> Result<Said> {
        if !std::mem::replace(&mut self.asked, true) {
            self.ask.send(()).context("the input ended")?;
        }
        let said = self.said.recv().await.context("the input ended")?;
        self.asked = false;
        said
    }
}

fn read_turn(stdin: &mut impl BufRead) -> Result<Said> {
    let mut turn = String::new();
    loop {
        let left = TURN_BYTES_MAX + 1 - turn.len() as u64;
        let read = stdin.take(left).read_line(&mut turn);
        let read = read.map_err(|error| Failure::new(Exit::Usage, format!("stdin cannot be read as text: {error}")))?;
        if turn.len() as u64 > TURN_BYTES_MAX {
            let message = format!("a turn on stdin is larger than {} MiB", TURN_BYTES_MAX >> 20);
            return Err(Failure::new(Exit::Usage, message).into());
        }
        if read == 0 && is_open(&turn) {
            return Err(Failure::new(Exit::Usage, "stdin ended inside of a text that \"\"\" began").into());
        }
        if read == 0 && turn.is_empty() {
            return Ok(Said::End);
        }
        if !is_open(&turn) {
            return Ok(Said::Text(turn));
        }
    }
}

type LineEditor = Editor<Assistance, FileHistory>;

fn editor(history: &Path, models: Vec<String>) -> Result<LineEditor, ReadlineError> {
    let config = Config::builder()
        .max_history_size(HISTORY_MAX)?
        .history_ignore_dups(true)?
        .history_ignore_space(true)
        .completion_type(CompletionType::List)
        .behavior(Behavior::PreferTerm)
        .build();
    let mut editor = LineEditor::with_config(config)?;
    editor.set_helper(Some(Assistance { models, files: FilenameCompleter::new() }));
    if history.exists()
        && let Err(error) = editor.load_history(history)
    {
        tracing::warn!(file = %history.display(), %error, "the history cannot be read");
    }
    Ok(editor)
}

fn read_line(editor: &mut LineEditor, history: &Path) -> Result<Said> {
    let line = match editor.readline(PROMPT) {
        Ok(line) => line,
        Err(ReadlineError::Interrupted) => return Ok(Said::Interrupted),
        Err(ReadlineError::Eof) => return Ok(Said::End),
        Err(error) => return Err(error).context("the terminal cannot be read"),
    };
    let kept = editor.add_history_entry(&line).and_then(|_| editor.append_history(history));
    if let Err(error) = kept {
        tracing::warn!(file = %history.display(), %error, "the history cannot be written");
    }
    Ok(Said::Text(line))
}

/// Completes commands, models and files, and lets a text in quotes have several lines.
struct Assistance {
    models: Vec<String>,
    files: FilenameCompleter,
}

impl Completer for Assistance {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        context: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let before = &line[..at];
        let starting_with = |begin: &str, words: &mut dyn Iterator<Item = &str>| -> Vec<Pair> {
            let pair = |word: &str| Pair { display: word.to_owned(), replacement: word.to_owned() };
            words.filter(|word| word.starts_with(begin)).map(pair).collect()
        };
        if let Some(begin) = before.strip_prefix("/model ") {
            let mut models = self.models.iter().map(String::as_str);
            return Ok((at - begin.len(), starting_with(begin, &mut models)));
        }
        if before.starts_with("/save ") || before.starts_with("/load ") {
            return self.files.complete(line, at, context);
        }
        let is_command = before.starts_with('/') && !before.contains(' ');
        Ok((0, if is_command { starting_with(before, &mut NAMES.into_iter()) } else { Vec::new() }))
    }
}

impl Hinter for Assistance {
    type Hint = String;
}

impl Highlighter for Assistance {}

impl Validator for Assistance {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let open = is_open(context.input());
        Ok(if open { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Helper for Assistance {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_a_line_or_several_in_quotes() {
        let mut stdin = "one\n\"\"\"two\n\nthree\"\"\"\nlast".as_bytes();
        let mut turns = Vec::new();
        while let Said::Text(turn) = read_turn(&mut stdin).unwrap() {
            turns.push(turn);
        }
        assert_eq!(turns, ["one\n", "\"\"\"two\n\nthree\"\"\"\n", "last"]);
        assert!(read_turn(&mut "\"\"\"open\n".as_bytes()).is_err());
        assert!(read_turn(&mut [0xff, b'\n'].as_slice()).is_err());
    }

    #[test]
    fn commands_and_models_are_completed() {
        let help =
            Assistance { models: vec!["fake:latest".to_owned(), "other".to_owned()], files: FilenameCompleter::new() };
        let history = FileHistory::new();
        let complete = |line: &str| {
            let (at, found) = help.complete(line, line.len(), &rustyline::Context::new(&history)).unwrap();
            (at, found.into_iter().map(|pair| pair.replacement).collect::<Vec<_>>())
        };
        assert_eq!(complete("/s"), (0, vec!["/save".to_owned(), "/system".to_owned()]));
        assert_eq!(complete("/model f"), (7, vec!["fake:latest".to_owned()]));
        assert!(complete("say /s").1.is_empty());
    }
}
