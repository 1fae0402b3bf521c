//! From a request's prompt to tokens.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::CStr;
use std::sync::Arc;

use bombus_core::chat::output::ThinkFilter;
use bombus_core::chat::{ChatRequest, EmbedInput, Message, Part, Prompt, ResponseFormat, Think, Tool, ToolChoice};
use bombus_infer::models::chat_template::ToolFormat;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;

use super::RunError;
use super::fit::{cut_tokens, fit_turns, keep_tokens};
use super::template::{ChatTemplate, Conversation, Marker, Piece, SpecialTokens};
use super::tools::call_grammar;

/// Makes tokens of prompts for one model.
pub(crate) struct PromptReader<'m> {
    vocab: LlamaVocab<'m>,
    marker: Result<Arc<Marker>, String>,
    template: Result<ChatTemplate, String>,
    with_tools: Option<ChatTemplate>,
    end_tokens: Vec<LlamaToken>,
    /// Most bytes of text that one token stands for, where that is known.
    token_bytes_max: Option<usize>,
}

/// A prompt, ready to be computed.
#[derive(Default)]
pub(crate) struct ReadPrompt {
    pub(crate) tokens: Vec<LlamaToken>,
    /// How to read tool calls in the answer, where the model was given tools.
    pub(crate) tools: Option<ToolFormat>,
    /// Grammar that demands a tool call.
    pub(crate) grammar: Option<String>,
    /// Tells thoughts apart, where the model is to think.
    pub(crate) think: Option<ThinkFilter>,
    /// Turns that were left out, where the prompt was too long.
    pub(crate) left_out: Option<usize>,
}

impl<'m> PromptReader<'m> {
    pub(crate) fn new(model: &'m LlamaModel) -> Self {
        let vocab = model.vocab();
        let chat = model.meta_val_str("tokenizer.chat_template").map_err(|_| {
            "this model has no chat template (it is a base model): give it text through /v1/completions".to_owned()
        });
        let marker = Marker::new(special_tokens(&vocab)).map(Arc::new);
        let compile = |source: &str| {
            let compiled =
                marker.as_ref().map_err(String::clone).and_then(|marker| ChatTemplate::compile(source, marker));
            compiled.map_err(|error| format!("the model's chat template cannot be used: {error}"))
        };
        // Some models have a second template, for conversations with tools.
        let with_tools = model.meta_val_str("tokenizer.chat_template.tool_use").ok();
        let with_tools = with_tools.and_then(|source| compile(&source).ok());
        let template = chat.and_then(|source| compile(&source));
        let end_tokens = vocab.tokens().filter(|token| vocab.is_eog(*token)).collect();
        let token_bytes_max = token_bytes_max(model, &vocab);
        Self { vocab, marker, template, with_tools, end_tokens, token_bytes_max }
    }

    /// Returns the tokens that end an answer.
    pub(crate) fn end_tokens(&self) -> &[LlamaToken] {
        &self.end_tokens
    }

    /// Returns a token's bytes; those of control tokens only where `special` is set.
    pub(crate) fn bytes_of(&self, token: LlamaToken, special: bool) -> Vec<u8> {
        self.vocab.token_to_piece(token, special, None)
    }

    /// Reads the prompt of a request to generate text. Where the request allows it, the prompt is made to have fewer than `limit` tokens.
    pub(crate) fn read(&self, request: &ChatRequest, limit: usize) -> Result<ReadPrompt, RunError> {
        if !request.images.is_empty() {
            return Err(RunError::unsupported("images", "this model does not see pictures"));
        }
        let brought = request.template.as_deref().map(|source| self.compile_brought(source)).transpose()?;
        if let Some(suffix) = &request.suffix {
            let Prompt::Raw(text) = &request.prompt else {
                return Err(RunError::invalid("suffix", "a suffix needs a prompt that is text"));
            };
            if self.tokens_min(text.len() + suffix.len()) >= limit {
                return Err(exceeded(limit));
            }
            return self.read_gap(text, suffix, brought.as_ref());
        }
        let has_tools = !request.tools.is_empty() && request.tool_choice != ToolChoice::None;
        let mut prompt = match &request.prompt {
            Prompt::Chat(messages) => self.read_chat(request, messages, brought.as_ref(), limit)?,
            _ if has_tools => return Err(RunError::invalid("tools", "tools need a conversation")),
            Prompt::Raw(text) => ReadPrompt::plain(self.read_raw(request, text, limit)?),
            Prompt::Tokens(ids) => ReadPrompt::plain(self.check_tokens(ids)?),
        };
        let mut earlier = self.check_tokens(&request.earlier_tokens)?;
        if earlier.is_empty() && !matches!(request.prompt, Prompt::Tokens(_)) {
            earlier = self.begin();
        }
        prompt.tokens.splice(0..0, earlier);
        if prompt.tokens.is_empty() {
            prompt.tokens.extend(self.begin_anew());
        }
        if request.overflow.truncate && prompt.tokens.len() >= limit && self.may_cut(request) {
            cut_tokens(&mut prompt.tokens, self.keep_tokens(request), limit);
            prompt.left_out.get_or_insert(0);
        }
        Ok(prompt)
    }

    /// Returns whether the tokens of a prompt may be cut anywhere: turns of a conversation are left out whole.
    fn may_cut(&self, request: &ChatRequest) -> bool {
        !matches!(request.prompt, Prompt::Chat(_)) || !request.earlier_tokens.is_empty()
    }

    /// Returns how many tokens at the beginning of a request's context always stay.
    pub(crate) fn keep_tokens(&self, request: &ChatRequest) -> usize {
        keep_tokens(request.overflow.keep_tokens, self.begin().len())
    }

    /// Tokenises an input of an embedding request, with the tokens that the model wants around it. The end of one that is longer than
    /// `tokens_max` is cut off.
    pub(crate) fn read_input(&self, input: &EmbedInput, tokens_max: usize) -> Result<Vec<LlamaToken>, RunError> {
        let (mut tokens, has_end) = match input {
            EmbedInput::Text(text) => {
                let has_end = self.vocab.should_add_eos() || self.vocab.should_add_sep();
                (self.vocab.tokenize(text.as_bytes(), true, false), has_end)
            }
            EmbedInput::Tokens(ids) => (self.check_tokens(ids)?, false),
        };
        if tokens.len() > tokens_max {
            let end = tokens.last().copied().filter(|_| has_end);
            tokens.truncate(tokens_max - usize::from(end.is_some()));
            tokens.extend(end);
        }
        Ok(tokens)
    }

    /// Returns how many tokens a text of so many bytes has at least, as far as that is known without making them.
    fn tokens_min(&self, bytes: usize) -> usize {
        self.token_bytes_max.map_or(0, |most| bytes.div_ceil(most))
    }

    /// Returns how many bytes so many tokens stand for at most.
    fn bytes_max(&self, tokens: usize) -> usize {
        self.token_bytes_max.map_or(usize::MAX, |most| tokens.saturating_mul(most))
    }

    /// Reads a text as it stands. Of one that is far too long no more is made into tokens than what may stay of it.
    fn read_raw(&self, request: &ChatRequest, text: &str, limit: usize) -> Result<Vec<LlamaToken>, RunError> {
        // Who writes raw text for a model writes its control tokens too.
        if self.tokens_min(text.len()) < limit {
            return Ok(self.tokens_of(text, true));
        }
        if !request.overflow.truncate {
            return Err(exceeded(limit));
        }
        let keep = self.keep_tokens(request).min(limit);
        let begin = &text[..text.floor_char_boundary(self.bytes_max(keep))];
        let mut tokens = self.tokens_of(begin, true);
        tokens.truncate(keep);
        tokens.extend(self.tokens_of(last_bytes(text, self.bytes_max(limit)), true));
        Ok(tokens)
    }

    fn compile_brought(&self, source: &str) -> Result<ChatTemplate, RunError> {
        let compiled =
            self.marker.as_ref().map_err(String::clone).and_then(|marker| ChatTemplate::compile(source, marker));
        compiled.map_err(|error| RunError::invalid("template", format!("the template cannot be used: {error}")))
    }

    fn read_chat(
        &self,
        request: &ChatRequest,
        messages: &[Message],
        brought: Option<&ChatTemplate>,
        limit: usize,
    ) -> Result<ReadPrompt, RunError> {
        let choice = &request.tool_choice;
        let tools: &[Tool] = if *choice == ToolChoice::None { &[] } else { &request.tools };
        let template = match (brought, &self.with_tools) {
            (Some(brought), _) => brought,
            (None, Some(with_tools)) if !tools.is_empty() => with_tools,
            _ => self.template.as_ref().map_err(|reason| RunError::invalid("messages", reason.as_str()))?,
        };
        let format = if tools.is_empty() { None } else { Some(template.tool_format()?) };
        let grammar = format.map(|format| call_grammar(format, tools, choice)).transpose()?.flatten();
        let has_form = grammar.is_some() || request.response_format != ResponseFormat::Text;
        let think = how_to_think(request.think.as_ref(), template.thinks(), has_form)?;
        let render = |messages: &[Message]| template.render(&Conversation { messages, tools, think: think.as_ref() });

        let pieces = render(messages)?;
        let thinks = think.as_ref().is_some_and(|think| *think != Think::Off);
        let is_opened = thinks && opens_thoughts(&pieces);
        // What has to have a form begins where the thoughts end, so these have to begin for certain.
        let opening = (thinks && has_form && !is_opened).then(|| Piece::Template("<think>\n".into()));
        let is_opened = is_opened || opening.is_some();
        let tokens_of = |pieces: Vec<Piece>| self.tokens_of_pieces(pieces.iter().chain(&opening));
        let room = limit.saturating_sub(self.begin().len());
        let may_fit = self.tokens_min(bytes_of(&pieces)) < room;
        let leaves_out = request.overflow.truncate && request.earlier_tokens.is_empty();
        let (mut tokens, mut left_out) = (Vec::new(), None);
        if may_fit {
            tokens = tokens_of(pieces);
        } else if request.overflow.truncate && !leaves_out {
            // What stands before the end will be cut.
            tokens = tokens_of(last_pieces(pieces, self.bytes_max(limit)));
        } else if !leaves_out {
            return Err(exceeded(limit));
        }
        if leaves_out && (!may_fit || tokens.len() >= room) {
            let count = |text: &str| match self.tokens_min(text.len()) {
                least if least > room => least,
                _ => self.tokens_of(text, false).len(),
            };
            let render = |messages: &[Message]| {
                let pieces = render(messages)?;
                // The last turn has its share at most, so what stands before it is too much alone.
                if self.tokens_min(bytes_of(&pieces)) >= room.saturating_mul(3) {
                    return Err(exceeded(limit));
                }
                Ok(tokens_of(pieces))
            };
            match fit_turns(&shorten_last(messages, self.bytes_max(room)), room, count, render)? {
                Some(fitted) => (tokens, left_out) = (fitted.tokens, Some(fitted.left_out)),
                None if may_fit => {}
                None => return Err(exceeded(limit)),
            }
        }
        let think = thinks.then(|| ThinkFilter::new(is_opened));
        Ok(ReadPrompt { tokens, tools: format, grammar, think, left_out })
    }

    /// Reads what stands before and behind a gap, for the model to fill in.
    fn read_gap(&self, text: &str, suffix: &str, brought: Option<&ChatTemplate>) -> Result<ReadPrompt, RunError> {
        let mut tokens = self.begin();
        if let Some(pieces) = brought.and_then(|template| template.fill_in(text, suffix)) {
            tokens.extend(self.tokens_of_pieces(&pieces?));
            return Ok(ReadPrompt::plain(tokens));
        }
        let [before, behind, gap] = [self.vocab.fim_pre(), self.vocab.fim_suf(), self.vocab.fim_mid()];
        if [before, behind, gap].iter().any(|token| token.0 < 0) {
            return Err(RunError::unsupported("suffix", "this model does not support insert"));
        }
        tokens.push(before);
        tokens.extend(self.tokens_of(text, false));
        tokens.push(behind);
        tokens.extend(self.tokens_of(suffix, false));
        tokens.push(gap);
        Ok(ReadPrompt::plain(tokens))
    }

    fn begin(&self) -> Vec<LlamaToken> {
        if self.vocab.should_add_bos() { vec![self.vocab.bos()] } else { Vec::new() }
    }

    /// Returns what stands before a text that has no beginning: what begins every text, or else what ends one, as far as there is either.
    fn begin_anew(&self) -> Option<LlamaToken> {
        [self.vocab.bos(), self.vocab.eos()].into_iter().find(|token| token.0 >= 0)
    }

    fn tokens_of(&self, text: &str, special: bool) -> Vec<LlamaToken> {
        self.vocab.tokenize(text.as_bytes(), false, special)
    }

    fn tokens_of_pieces<'p>(&self, pieces: impl IntoIterator<Item = &'p Piece>) -> Vec<LlamaToken> {
        let tokens_of = |piece: &Piece| match piece {
            Piece::Template(text) => self.tokens_of(text, true),
            Piece::Literal(text) => self.tokens_of(text, false),
        };
        pieces.into_iter().flat_map(tokens_of).collect()
    }

    /// Tokenises a piece of an answer that was written by tokens, so that they give it again: no blank is put before it, as many
    /// vocabularies do with text.
    pub(crate) fn tokens_of_answer(&self, bytes: &[u8], special: bool) -> Vec<LlamaToken> {
        let tokens_of = |bytes: &[u8]| self.vocab.tokenize(bytes, false, special);
        let gives = |tokens: &[LlamaToken], wanted: &[u8]| {
            tokens.iter().flat_map(|token| self.bytes_of(*token, special)).eq(wanted.iter().copied())
        };
        let tokens = tokens_of(bytes);
        if bytes.is_empty() || gives(&tokens, bytes) {
            return tokens;
        }
        // The blank that is put there may be the piece's own.
        if let Some(rest) = bytes.strip_prefix(b" ") {
            let own = tokens_of(rest);
            if gives(&own, bytes) {
                return own;
            }
        }
        // Behind a line's end there is none.
        let line = tokens_of(b"\n");
        let behind = tokens_of(&[b"\n", bytes].concat());
        match behind.strip_prefix(line.as_slice()) {
            Some(rest) if gives(rest, bytes) => rest.to_vec(),
            _ => tokens,
        }
    }

    pub(crate) fn check_tokens(&self, ids: &[u32]) -> Result<Vec<LlamaToken>, RunError> {
        let size = self.vocab.n_tokens();
        let check = |id: &u32| {
            i32::try_from(*id).ok().filter(|id| *id < size).map(LlamaToken).ok_or_else(|| {
                RunError::invalid("prompt", format!("token {id} is not in the model's vocabulary of {size}"))
            })
        };
        ids.iter().map(check).collect()
    }
}

/// Returns the most bytes of text that a token of a vocabulary stands for. It is known of the two common kinds, which make tokens of all of
/// a text: others leave blanks out, or have one token for whatever they do not know.
fn token_bytes_max(model: &LlamaModel, vocab: &LlamaVocab<'_>) -> Option<usize> {
    let kind = model.meta_val_str("tokenizer.ggml.model").unwrap_or_default();
    if !matches!(kind.as_str(), "gpt2" | "llama") {
        return None;
    }
    // The bytes are written out in these, so that they are rather more than in the text.
    let texts = vocab.tokens().filter_map(|token| vocab.text(token));
    texts.map(CStr::count_bytes).max().filter(|most| *most > 0)
}

/// The error of a prompt that is so long that its tokens are not counted.
fn exceeded(limit: usize) -> RunError {
    RunError::ContextExceeded { prompt_tokens: 0, context_tokens: u32::try_from(limit).unwrap_or(u32::MAX) }
}

fn bytes_of(pieces: &[Piece]) -> usize {
    let bytes = |piece: &Piece| match piece {
        Piece::Template(text) | Piece::Literal(text) => text.len(),
    };
    pieces.iter().map(bytes).sum()
}

/// Returns the end of a text, at most so many bytes.
fn last_bytes(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

/// Returns the last pieces of a prompt that have at most so many bytes, the first of them without its beginning.
fn last_pieces(mut pieces: Vec<Piece>, bytes: usize) -> Vec<Piece> {
    let (mut first, mut room) = (pieces.len(), bytes);
    while first > 0 && room > 0 {
        first -= 1;
        let (Piece::Template(text) | Piece::Literal(text)) = &mut pieces[first];
        if text.len() > room {
            *text = last_bytes(text, room).to_owned();
            break;
        }
        room -= text.len();
    }
    pieces.split_off(first)
}

/// Leaves out the beginning of the last turn's text where that has more than so many bytes.
fn shorten_last(messages: &[Message], bytes: usize) -> Cow<'_, [Message]> {
    let text = messages.last().map(Message::joined_text).filter(|text| text.len() > bytes);
    let Some(text) = text else { return Cow::Borrowed(messages) };
    let mut shortened = messages.to_vec();
    if let Some(last) = shortened.last_mut() {
        last.content = vec![Part::Text(last_bytes(&text, bytes).to_owned())];
    }
    Cow::Owned(shortened)
}

/// Decides whether a model is to think: one that can does unless it is told not to, or its answer has to have a form and nothing was
/// said. `None` where there is nothing to decide.
fn how_to_think(wanted: Option<&Think>, thinks: bool, has_form: bool) -> Result<Option<Think>, RunError> {
    match (wanted, thinks) {
        (Some(Think::On | Think::Level(_)), false) => {
            Err(RunError::unsupported("think", "this model does not support thinking"))
        }
        (_, false) => Ok(None),
        (Some(wanted), true) => Ok(Some(wanted.clone())),
        (None, true) => Ok(Some(if has_form { Think::Off } else { Think::On })),
    }
}

/// Returns whether a prompt ends where the model is to write its thoughts.
fn opens_thoughts(pieces: &[Piece]) -> bool {
    matches!(pieces.last(), Some(Piece::Template(text)) if text.trim_end().ends_with("<think>"))
}

fn special_tokens(vocab: &LlamaVocab<'_>) -> SpecialTokens {
    let text_of =
        |token: LlamaToken| vocab.text(token).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    let texts_with = |wanted: &[LlamaTokenAttr]| -> Vec<String> {
        let has = |token: &LlamaToken| wanted.iter().any(|attr| vocab.attr(*token).contains(*attr));
        vocab.tokens().filter(has).map(text_of).filter(|text| !text.is_empty()).collect()
    };
    let single = |token: LlamaToken| if token.0 < 0 { String::new() } else { text_of(token) };
    let user_defined = texts_with(&[LlamaTokenAttr::UserDefined]);
    SpecialTokens {
        control: texts_with(&[LlamaTokenAttr::Control, LlamaTokenAttr::Unknown]),
        // Runs of blanks and the like are tokens too, and forge nothing.
        user_defined: user_defined.into_iter().filter(|text| text.contains(['<', '['])).collect(),
        bos: single(vocab.bos()),
        eos: single(vocab.eos()),
        adds_bos: vocab.should_add_bos(),
    }
}

impl ReadPrompt {
    fn plain(tokens: Vec<LlamaToken>) -> Self {
        Self { tokens, ..Self::default() }
    }
}
