//! The beginning of an answer as the model that goes on with it has to read it: with the marks of its thoughts.

use super::thinking::{CLOSING, OPENING};
use crate::chat::Resume;

/// A piece of what a model has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What kind of text it is.
    pub kind: PartKind,
    /// Its bytes; not always whole UTF-8 characters at the end of an answer.
    pub bytes: Vec<u8>,
}

/// What a [`Part`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartKind {
    /// The marks around thoughts, which may be tokens of their own.
    Marks,
    /// A thought.
    Thought,
    /// The answer itself.
    Answer,
}

/// Writes down what was handed on of an answer, and apart from that what was not. `think`: `None` where thoughts are not told apart, else
/// whether the prompt has their opening already.
pub(super) fn parts(resume: &Resume, think: Option<bool>) -> (Vec<Part>, Option<Part>) {
    let part = |kind, bytes: &[u8]| Part { kind, bytes: bytes.to_vec() };
    let answer = || part(PartKind::Answer, resume.text.as_bytes());
    let held = |kind| Some(part(kind, &resume.held)).filter(|part| !part.bytes.is_empty());
    let said_nothing = resume.thinking.is_empty() && resume.text.is_empty();
    let Some(is_opened) = think else {
        // What was held back of a thought is none of the answer's.
        let is_answers = resume.thinking.is_empty() || !resume.text.is_empty();
        return (vec![answer()], held(PartKind::Answer).filter(|_| is_answers));
    };
    if said_nothing {
        let unopened = if is_opened { without_opening(&resume.held) } else { &resume.held };
        return (Vec::new(), Some(part(PartKind::Marks, unopened)).filter(|part| !part.bytes.is_empty()));
    }
    let mut parts = Vec::new();
    if !resume.thinking.is_empty() {
        if !is_opened {
            parts.push(part(PartKind::Marks, format!("{OPENING}\n").as_bytes()));
        }
        parts.push(part(PartKind::Thought, resume.thinking.as_bytes()));
        if resume.text.is_empty() {
            let is_closed = String::from_utf8_lossy(&resume.held).contains(CLOSING);
            return (parts, held(if is_closed { PartKind::Marks } else { PartKind::Thought }));
        }
    }
    if is_opened || !resume.thinking.is_empty() {
        parts.push(part(PartKind::Marks, format!("\n{CLOSING}\n\n").as_bytes()));
    }
    parts.push(answer());
    (parts, held(PartKind::Answer))
}

/// Joins what was held back to the parts before it.
pub(super) fn joined(mut parts: Vec<Part>, held: Option<Part>) -> Vec<Part> {
    match (parts.last_mut(), held) {
        (Some(last), Some(held)) if last.kind == held.kind => last.bytes.extend(held.bytes),
        (_, held) => parts.extend(held),
    }
    parts.retain(|part| !part.bytes.is_empty());
    parts
}

fn without_opening(held: &[u8]) -> &[u8] {
    let written = held.trim_ascii_start();
    written.strip_prefix(OPENING.as_bytes()).unwrap_or(held)
}
