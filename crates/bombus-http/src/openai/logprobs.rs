use bombus_core::chat::{TokenAlternative, TokenLogprob};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// What stands for a probability of zero, whose logarithm JSON cannot write.
const LOGPROB_MIN: f32 = -9999.0;

/// The tokens of a chat answer with their log probabilities.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatTokenLogprob>,
    /// Always `null`.
    #[schema(required)]
    refusal: Option<Vec<ChatTokenLogprob>>,
}

/// A token with its log probability and those that could have stood in its place.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatTokenLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTopLogprob>,
}

/// A token that could have stood somewhere.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatTopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

/// The tokens of a continuation with their log probabilities, each list with one element a token.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// From the likeliest tokens at each place to their log probabilities.
    #[schema(value_type = Vec<Object>)]
    top_logprobs: Vec<Map<String, Value>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

impl ChatLogprobs {
    /// Describes the tokens of an answer or of a piece of one.
    pub(crate) fn of(tokens: Vec<TokenLogprob>) -> Self {
        let describe = |token: TokenLogprob| ChatTokenLogprob {
            token: text_of(&token.token.bytes),
            logprob: finite(token.token.logprob),
            bytes: token.token.bytes,
            top_logprobs: token.top.into_iter().map(ChatTopLogprob::of).collect(),
        };
        Self { content: tokens.into_iter().map(describe).collect(), refusal: None }
    }
}

impl ChatTopLogprob {
    fn of(token: TokenAlternative) -> Self {
        Self { token: text_of(&token.bytes), logprob: finite(token.logprob), bytes: token.bytes }
    }
}

impl CompletionLogprobs {
    /// Adds tokens and moves the offset, in characters, past them.
    pub(crate) fn extend(&mut self, tokens: &[TokenLogprob], offset: &mut usize) {
        for token in tokens {
            let text = completion_text_of(&token.token.bytes);
            self.text_offset.push(*offset);
            // Characters are counted where they begin, since their bytes may come in several tokens.
            *offset += token.token.bytes.iter().filter(|byte| **byte & 0b1100_0000 != 0b1000_0000).count();
            self.tokens.push(text);
            self.token_logprobs.push(finite(token.token.logprob));
            let top = token.top.iter().map(|top| (completion_text_of(&top.bytes), finite(top.logprob).into()));
            self.top_logprobs.push(top.collect());
        }
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns a token's text; for one that is no whole text its bytes, as `bytes:\xe2\x80`, for in this form nothing else tells them.
fn completion_text_of(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN }
}
