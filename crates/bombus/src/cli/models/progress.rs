use std::io::IsTerminal;
use std::time::{Duration, Instant};

use bombus_infer::models::pull::{PullProgress, PullStage};
use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

/// Time between two plain lines.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Shows on stderr how far a long step is: a bar on a terminal, a line now and then elsewhere.
pub(super) enum Progress {
    /// For people.
    Bar(ProgressBar),
    /// For logs.
    Lines(Lines),
    /// For nobody.
    Quiet,
}

/// Where plain lines are at.
pub(super) struct Lines {
    subject: String,
    stage: String,
    printed: Option<Instant>,
}

impl Progress {
    /// Begins with nothing done.
    pub(super) fn new(subject: &str, quiet: bool) -> Self {
        Self::among(&MultiProgress::new(), subject, quiet)
    }

    /// Begins one of several that are shown together.
    pub(super) fn among(others: &MultiProgress, subject: &str, quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Lines { subject: subject.to_owned(), stage: String::new(), printed: None });
        }
        let bar = others.add(ProgressBar::no_length().with_prefix(subject.to_owned()));
        let style = "{prefix} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(style).expect("a constant that indicatif accepts"));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::Bar(bar)
    }

    /// Shows how far a pull is.
    pub(super) fn pull(&mut self, step: &PullProgress) {
        let stage = match step.stage {
            PullStage::Downloading if step.peers.is_some() => {
                let stage = format!("from peer {}", step.peers.as_deref().unwrap_or_default());
                return self.bytes(&stage, step.done_bytes, step.total_bytes);
            }
            PullStage::Resolving => "looking it up",
            PullStage::Waiting => "waiting for another process that fetches it",
            PullStage::Downloading => "downloading",
            PullStage::Extracting => "unpacking",
            PullStage::Verifying => "checking what came before",
        };
        self.bytes(stage, step.done_bytes, step.total_bytes);
    }

    /// Shows how many bytes of a stage are done.
    pub(super) fn bytes(&mut self, stage: &str, done: u64, total: Option<u64>) {
        match self {
            Self::Bar(bar) => {
                bar.set_message(stage.to_owned());
                if let Some(total) = total {
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            Self::Lines(lines) => lines.show(stage, done, total),
            Self::Quiet => {}
        }
    }

    /// Takes the bar away.
    pub(super) fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Lines {
    fn show(&mut self, stage: &str, done: u64, total: Option<u64>) {
        let due = self.stage != stage || self.printed.is_none_or(|at| at.elapsed() >= LINE_INTERVAL);
        if !due {
            return;
        }
        stage.clone_into(&mut self.stage);
        self.printed = Some(Instant::now());
        let amount = match total {
            Some(total) => format!(" {} of {}", HumanBytes(done), HumanBytes(total)),
            None if done > 0 => format!(" {}", HumanBytes(done)),
            None => String::new(),
        };
        eprintln!("{}: {stage}{amount}", self.subject);
    }
}
