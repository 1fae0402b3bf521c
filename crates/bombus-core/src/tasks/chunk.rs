//! How a long prompt is cut into parts, and how their answers become one.
//!
//! Sizes are counted in characters as people see them (extended grapheme clusters, Unicode Annex 29), and none is ever cut in two. The
//! parts of a text, put one behind the other, are that text again: white space at a cut stays at the end of the part before it, and
//! does not count.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

/// So many parts a text is cut into at most.
pub const CHUNKS_MAX: usize = 4_096;

/// How long the parts are where nobody says so, in characters.
pub const CHUNK_CHARS: usize = 4_000;

/// What stands between the answers of parts where nobody says so.
pub const JOINER: &str = "\n\n";

/// Where a template takes the text in.
pub const PLACE: &str = "{text}";

/// Where a text is cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chunking {
    /// Nowhere.
    #[default]
    None,
    /// Between paragraphs, as many of which make a part as fit. A paragraph that is too long by itself is cut by its size.
    #[serde(alias = "split-by-paragraph")]
    Paragraph,
    /// Between words, as late as possible. A word that is too long by itself is cut inside.
    #[serde(alias = "split-by-size")]
    Size,
}

/// Says that a word is no [`Chunking`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a text is cut by \"none\", \"paragraph\" or \"size\"")]
pub struct ParseChunkingError;

impl FromStr for Chunking {
    type Err = ParseChunkingError;

    fn from_str(word: &str) -> Result<Self, ParseChunkingError> {
        match word {
            "none" => Ok(Self::None),
            "paragraph" | "split-by-paragraph" => Ok(Self::Paragraph),
            "size" | "split-by-size" => Ok(Self::Size),
            _ => Err(ParseChunkingError),
        }
    }
}

/// Why a text is not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Parts would be empty.
    #[error("parts of a text must have at least 1 character")]
    Size,
    /// There would be too many.
    #[error("the text has more than 4096 parts of this size: allow larger ones")]
    Count,
}

/// Cuts a text into parts of at most so many characters each.
///
/// # Errors
///
/// Refuses parts of no characters, and more than [`CHUNKS_MAX`] of them.
pub fn split(text: &str, chunking: Chunking, chars_max: usize) -> Result<Vec<&str>, ChunkError> {
    if chunking == Chunking::None {
        return Ok(vec![text]);
    }
    if chars_max == 0 {
        return Err(ChunkError::Size);
    }
    let mut parts = Vec::new();
    match chunking {
        Chunking::Paragraph => by_paragraph(text, chars_max, &mut parts)?,
        Chunking::None | Chunking::Size => by_size(text, chars_max, &mut parts)?,
    }
    if parts.is_empty() {
        parts.push(text);
    }
    Ok(parts)
}

/// Puts a text into a template, in place of each [`PLACE`], or behind a template that has none.
#[must_use]
pub fn fill(template: &str, text: &str) -> String {
    if template.contains(PLACE) { template.replace(PLACE, text) } else { format!("{template}\n\n{text}") }
}

fn push<'a>(parts: &mut Vec<&'a str>, part: &'a str) -> Result<(), ChunkError> {
    if parts.len() >= CHUNKS_MAX {
        return Err(ChunkError::Count);
    }
    parts.push(part);
    Ok(())
}

fn by_paragraph<'a>(text: &'a str, chars_max: usize, parts: &mut Vec<&'a str>) -> Result<(), ChunkError> {
    // What is collected for the next part: where it begins, and its characters with the white space at its end.
    let (mut begin, mut collected) = (0, 0);
    let mut end = 0;
    for paragraph in paragraphs(text) {
        let (content, whole) = (chars(paragraph.trim_end()), chars(paragraph));
        if collected + content > chars_max && begin < end {
            push(parts, &text[begin..end])?;
            (begin, collected) = (end, 0);
        }
        end += paragraph.len();
        if content > chars_max {
            by_size(paragraph, chars_max, parts)?;
            (begin, collected) = (end, 0);
        } else {
            collected += whole;
        }
    }
    if begin < end { push(parts, &text[begin..end]) } else { Ok(()) }
}

/// Cuts a text behind each run of empty lines.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut end = 0;
        let (mut has_content, mut is_at_end) = (false, false);
        for line in rest.split_inclusive('\n') {
            let is_empty = line.trim().is_empty();
            if !is_empty && is_at_end {
                break;
            }
            has_content |= !is_empty;
            is_at_end = has_content && is_empty;
            end += line.len();
        }
        let (paragraph, next) = rest.split_at(end);
        rest = next;
        Some(paragraph)
    })
}

fn by_size<'a>(text: &'a str, chars_max: usize, parts: &mut Vec<&'a str>) -> Result<(), ChunkError> {
    let mut rest = text;
    while !rest.is_empty() {
        let (part, next) = rest.split_at(cut(rest, chars_max));
        push(parts, part)?;
        rest = next;
    }
    Ok(())
}

/// Returns where the first part of a text ends that is not empty.
fn cut(text: &str, chars_max: usize) -> usize {
    let mut bounds: Vec<usize> = text.grapheme_indices(true).map(|(at, _)| at).take(chars_max + 1).collect();
    if bounds.len() <= chars_max {
        return text.len();
    }
    let limit = bounds[chars_max];
    let tokens = text.split_word_bound_indices().take_while(|(at, _)| *at <= limit);
    let (mut word, mut space) = (None, None);
    for (at, token) in tokens.filter(|(at, _)| *at > 0 && bounds.binary_search(at).is_ok()) {
        if token.trim().is_empty() {
            space = Some(at);
        } else if text[..at].ends_with(char::is_whitespace) {
            space = space.or(Some(at));
        } else {
            word = Some(at);
        }
    }
    bounds.truncate(chars_max);
    // Where spaces are rare, as in Chinese, a cut at one of them could be far too early.
    let is_late = |at: &usize| bounds.binary_search(at).map_or(true, |chars| chars * 2 >= chars_max);
    let content = space.filter(is_late).or(word).or(space).unwrap_or(limit);
    content + hanging(&text[content..], chars_max)
}

/// Returns how much white space stays at the end of a part: not more characters than a part may have itself.
fn hanging(text: &str, chars_max: usize) -> usize {
    let space = text.graphemes(true).take_while(|character| character.trim().is_empty());
    space.take(chars_max).map(str::len).sum()
}

fn chars(text: &str) -> usize {
    text.graphemes(true).count()
}

#[cfg(test)]
mod tests;
