//! What a model thinks before it answers, told apart from the answer.

use crate::chat::{Delta, TokenLogprob};

pub(super) const OPENING: &str = "<think>";
pub(super) const CLOSING: &str = "</think>";

/// Separates `<think>...</think>` at the beginning of an answer from what follows, while it is generated.
#[derive(Debug, Clone)]
pub struct ThinkFilter {
    stage: Stage,
    held: String,
    /// What was left out since the last character that was let go: marks, and white space beside them.
    left_out: String,
    /// Log probabilities of text of which is not known yet what it belongs to.
    logprobs: Vec<TokenLogprob>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing but white space and a part of the opening has come.
    Begin,
    /// White space behind the opening is left out.
    Opened,
    Thinks,
    /// White space behind the closing is left out.
    Closed,
    Answers,
}

/// What may leave.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Thought {
    pub(super) thinking: String,
    pub(super) answer: Delta,
    /// What was left out before the answer's first character.
    pub(super) between: String,
}

impl ThinkFilter {
    /// Begins with an answer of which the prompt may have the opening already.
    #[must_use]
    pub fn new(is_opened: bool) -> Self {
        let stage = if is_opened { Stage::Opened } else { Stage::Begin };
        Self { stage, held: String::new(), left_out: String::new(), logprobs: Vec::new() }
    }

    /// Returns whether the answer itself may not have begun yet.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.stage, Stage::Begin | Stage::Opened | Stage::Thinks)
    }

    /// Returns whether the thoughts have been opened, and nothing has come since.
    pub(super) fn is_opened(&self) -> bool {
        self.stage == Stage::Opened
    }

    /// Returns what is held back, without what is left out for good.
    pub(super) fn held(&self) -> &str {
        &self.held
    }

    /// Returns all that was written behind the last character that was let go.
    pub(super) fn unsaid(&self) -> String {
        format!("{}{}", self.left_out, self.held)
    }

    /// Takes more of what the model writes and returns what may leave.
    pub(super) fn push(&mut self, delta: Delta) -> Thought {
        if self.stage == Stage::Answers {
            return Thought { answer: delta, ..Thought::default() };
        }
        self.held.push_str(&delta.text);
        self.logprobs.extend(delta.logprobs);
        let mut thought = Thought::default();
        while self.go_on(&mut thought) {}
        if self.stage == Stage::Answers {
            thought.answer.logprobs = std::mem::take(&mut self.logprobs);
        } else if self.stage != Stage::Begin {
            // Thoughts have no place for them.
            self.logprobs.clear();
        }
        thought
    }

    /// Returns what is left at the end of the answer.
    pub(super) fn finish(&mut self) -> Thought {
        let held = std::mem::take(&mut self.held);
        let logprobs = std::mem::take(&mut self.logprobs);
        self.left_out.clear();
        match self.stage {
            Stage::Opened | Stage::Thinks => Thought { thinking: held.trim_end().to_owned(), ..Thought::default() },
            Stage::Closed => Thought::default(),
            Stage::Begin | Stage::Answers => {
                Thought { answer: Delta { text: held, logprobs, trace: None }, ..Thought::default() }
            }
        }
    }

    /// Takes one step. Returns whether another may follow.
    fn go_on(&mut self, thought: &mut Thought) -> bool {
        match self.stage {
            Stage::Begin => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(OPENING) {
                    let opened = self.held.len() - rest.len();
                    self.left_out.extend(self.held.drain(..opened));
                    self.stage = Stage::Opened;
                    return true;
                }
                if OPENING.starts_with(text) {
                    return false;
                }
                self.stage = Stage::Answers;
                true
            }
            Stage::Opened | Stage::Closed => {
                let blank = self.held.len() - self.held.trim_start().len();
                self.left_out.extend(self.held.drain(..blank));
                if self.held.is_empty() {
                    return false;
                }
                self.stage = if self.stage == Stage::Opened { Stage::Thinks } else { Stage::Answers };
                true
            }
            Stage::Thinks => {
                if let Some(at) = self.held.find(CLOSING) {
                    let said = self.held[..at].trim_end().len();
                    self.say_thought(said, thought);
                    let closed = at - said + CLOSING.len();
                    self.left_out.extend(self.held.drain(..closed));
                    self.stage = Stage::Closed;
                    self.logprobs.clear();
                    return true;
                }
                let undecided = (1..CLOSING.len()).rev().find(|&length| self.held.ends_with(&CLOSING[..length]));
                let decided = self.held[..self.held.len() - undecided.unwrap_or(0)].trim_end().len();
                self.say_thought(decided, thought);
                false
            }
            Stage::Answers => {
                thought.between = std::mem::take(&mut self.left_out);
                thought.answer.text.push_str(&std::mem::take(&mut self.held));
                false
            }
        }
    }

    fn say_thought(&mut self, bytes: usize, thought: &mut Thought) {
        if bytes > 0 {
            self.left_out.clear();
            thought.thinking.extend(self.held.drain(..bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(is_opened: bool, written: &str, cut: usize) -> (String, String) {
        let mut filter = ThinkFilter::new(is_opened);
        let (mut thinking, mut answer) = (String::new(), String::new());
        let mut take = |thought: Thought| {
            thinking.push_str(&thought.thinking);
            answer.push_str(&thought.answer.text);
        };
        for piece in written.as_bytes().chunks(cut) {
            let text = std::str::from_utf8(piece).unwrap().to_owned();
            take(filter.push(Delta::text(text)));
        }
        take(filter.finish());
        (thinking, answer)
    }

    #[test]
    fn thoughts_and_answer_are_told_apart_at_every_cut() {
        for cut in 1..20 {
            for (is_opened, written) in [
                (false, "\n<think>\nLet me < see.\n\n</think>\n\n42 </think>"),
                (true, "Let me < see.</think>42 </think>"),
            ] {
                let told = run(is_opened, written, cut);
                assert_eq!(told, ("Let me < see.".to_owned(), "42 </think>".to_owned()), "{cut}");
            }
        }
    }

    #[test]
    fn an_answer_without_thoughts_is_not_held_back() {
        let mut filter = ThinkFilter::new(false);
        assert!(filter.is_thinking());
        let thought = filter.push(Delta::text("No."));
        assert_eq!((thought.answer.text.as_str(), filter.is_thinking()), ("No.", false));
        assert_eq!(run(false, "<thin", 2), (String::new(), "<thin".to_owned()));
    }

    #[test]
    fn an_answer_that_ends_while_it_thinks_has_only_thoughts() {
        assert_eq!(run(false, "<think>\nHm, </thi", 4), ("Hm, </thi".to_owned(), String::new()));
        assert_eq!(run(false, "<think>\n\n</think>\n\nYes", 3), (String::new(), "Yes".to_owned()));
    }
}
