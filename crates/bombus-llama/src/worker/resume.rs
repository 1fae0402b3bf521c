//! The beginning of an answer that another run gave.

use bombus_core::chat::output::{FollowedText, FollowedTokens, Output, Part, PartKind};
use bombus_core::chat::{ChatEvent, Resume};
use llama_cpp_2::token::LlamaToken;

use super::prompt::PromptReader;

/// Where another run broke off.
pub(crate) struct Beginning {
    /// The answer so far, each token with whether it was written before the answer itself began.
    pub(crate) tokens: Vec<(LlamaToken, bool)>,
    /// How many tokens count as generated.
    pub(crate) generated: usize,
    /// Hands on what comes after what was handed on.
    pub(crate) output: Output,
    /// What was not handed on, although it could have been.
    pub(crate) events: Vec<ChatEvent>,
    /// Whether the answer has come to its end.
    pub(crate) stopped: bool,
}

/// Reads the beginning of an answer: its tokens, where these are what was handed on, or else its text. `fresh` is the way of an answer
/// that begins anew.
///
/// A run that goes on by the text tells all tokens of the answer with its first event, those of the beginning too.
pub(crate) fn read_beginning(prompts: &PromptReader<'_>, fresh: &Output, resume: &Resume) -> Beginning {
    by_tokens(prompts, fresh, resume).unwrap_or_else(|| by_text(prompts, fresh, resume))
}

fn by_tokens(prompts: &PromptReader<'_>, fresh: &Output, resume: &Resume) -> Option<Beginning> {
    let mut tokens = prompts.check_tokens(&resume.tokens).ok().filter(|tokens| !tokens.is_empty())?;
    let end = tokens.iter().position(|token| prompts.end_tokens().contains(token));
    tokens.truncate(end.unwrap_or(tokens.len()));
    let bytes_of = |token: u32, special| prompts.bytes_of(LlamaToken(token.cast_signed()), special);
    let followed = fresh.follow_tokens(resume, &resume.tokens[..tokens.len()], bytes_of)?;
    let FollowedTokens { mut output, thoughts, mut events, stopped } = followed;
    output.tell_tokens([], &mut events);
    let generated = tokens.len();
    let tokens = tokens.into_iter().enumerate().map(|(index, token)| (token, index < thoughts)).collect();
    Some(Beginning { tokens, generated, output, events, stopped: stopped || end.is_some() })
}

fn by_text(prompts: &PromptReader<'_>, fresh: &Output, resume: &Resume) -> Beginning {
    let FollowedText { mut output, parts, mut events, stopped } = fresh.follow_text(resume);
    let tokens_of = |part: &Part| {
        let is_answer = part.kind == PartKind::Answer;
        let tokens = prompts.tokens_of_answer(&part.bytes, part.kind == PartKind::Marks);
        tokens.into_iter().map(move |token| (token, !is_answer))
    };
    let tokens: Vec<(LlamaToken, bool)> = parts.iter().flat_map(tokens_of).collect();
    output.tell_tokens(tokens.iter().map(|(token, _)| token.0.unsigned_abs()), &mut events);
    // Another vocabulary may need more or fewer of them for the same text; what was counted counts.
    let counted = resume.completion_tokens as usize;
    let generated = if counted > 0 { counted } else { tokens.len() };
    Beginning { tokens, generated, output, events, stopped }
}
