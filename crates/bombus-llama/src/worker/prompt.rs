//! From a request's prompt to tokens.

use bombus_core::chat::{ChatRequest, EmbedInput, Message, Prompt, Tool, ToolChoice};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use llama_cpp_2::vocab::LlamaVocab;

use super::RunError;
use super::template::{ChatTemplate, Piece, SpecialTokens};
use super::tools::ToolFormat;

/// Makes tokens of prompts for one model.
pub(crate) struct PromptReader<'m> {
    vocab: LlamaVocab<'m>,
    template: Result<ChatTemplate, String>,
    with_tools: Option<ChatTemplate>,
    end_tokens: Vec<LlamaToken>,
}

/// A prompt, ready to be computed.
pub(crate) struct ReadPrompt {
    pub(crate) tokens: Vec<LlamaToken>,
    /// How to read tool calls in the answer, where the model was given tools.
    pub(crate) tools: Option<ToolFormat>,
    /// Grammar that demands a tool call.
    pub(crate) grammar: Option<String>,
}

impl<'m> PromptReader<'m> {
    pub(crate) fn new(model: &'m LlamaModel) -> Self {
        let vocab = model.vocab();
        let chat = model.meta_val_str("tokenizer.chat_template").map_err(|_| {
            "this model has no chat template (it is a base model): give it text through /v1/completions".to_owned()
        });
        let special = special_tokens(&vocab);
        let compile = |source: &str| {
            ChatTemplate::compile(source, special.clone())
                .map_err(|error| format!("the model's chat template cannot be used: {error}"))
        };
        // Some models have a second template, for conversations with tools.
        let with_tools = model.meta_val_str("tokenizer.chat_template.tool_use").ok();
        let with_tools = with_tools.and_then(|source| compile(&source).ok());
        let end_tokens = vocab.tokens().filter(|token| vocab.is_eog(*token)).collect();
        Self { vocab, template: chat.and_then(|source| compile(&source)), with_tools, end_tokens }
    }

    /// Returns the tokens that end an answer.
    pub(crate) fn end_tokens(&self) -> &[LlamaToken] {
        &self.end_tokens
    }

    /// Returns a token's bytes; those of control tokens only where `special` is set.
    pub(crate) fn bytes_of(&self, token: LlamaToken, special: bool) -> Vec<u8> {
        self.vocab.token_to_piece(token, special, None)
    }

    /// Reads the prompt of a request to generate text.
    pub(crate) fn read(&self, request: &ChatRequest) -> Result<ReadPrompt, RunError> {
        let tools: &[Tool] = if request.tool_choice == ToolChoice::None { &[] } else { &request.tools };
        match &request.prompt {
            Prompt::Chat(messages) => self.read_chat(messages, tools, &request.tool_choice),
            _ if !tools.is_empty() => Err(RunError::invalid("tools", "tools need a conversation")),
            // Who writes raw text for a model writes its control tokens too.
            Prompt::Raw(text) => Ok(ReadPrompt::plain(self.tokens_of_raw(text))),
            Prompt::Tokens(ids) => Ok(ReadPrompt::plain(self.check_tokens(ids)?)),
        }
    }

    /// Tokenises an input of an embedding request, with the tokens that the model wants around it.
    pub(crate) fn read_input(&self, input: &EmbedInput) -> Result<Vec<LlamaToken>, RunError> {
        match input {
            EmbedInput::Text(text) => Ok(self.vocab.tokenize(text.as_bytes(), true, false)),
            EmbedInput::Tokens(ids) => self.check_tokens(ids),
        }
    }

    fn read_chat(&self, messages: &[Message], tools: &[Tool], choice: &ToolChoice) -> Result<ReadPrompt, RunError> {
        let template = match &self.with_tools {
            Some(with_tools) if !tools.is_empty() => with_tools,
            _ => self.template.as_ref().map_err(|reason| RunError::invalid("messages", reason.as_str()))?,
        };
        let format = if tools.is_empty() { None } else { Some(template.tool_format()?) };
        let grammar = format.map(|format| format.grammar(tools, choice)).transpose()?.flatten();
        let mut tokens = self.begin();
        for piece in template.render(messages, tools)? {
            let (text, special) = match &piece {
                Piece::Template(text) => (text, true),
                Piece::Literal(text) => (text, false),
            };
            tokens.extend(self.vocab.tokenize(text.as_bytes(), false, special));
        }
        Ok(ReadPrompt { tokens, tools: format, grammar })
    }

    fn begin(&self) -> Vec<LlamaToken> {
        if self.vocab.should_add_bos() { vec![self.vocab.bos()] } else { Vec::new() }
    }

    fn tokens_of_raw(&self, text: &str) -> Vec<LlamaToken> {
        let mut tokens = self.begin();
        tokens.extend(self.vocab.tokenize(text.as_bytes(), false, true));
        tokens
    }

    fn check_tokens(&self, ids: &[u32]) -> Result<Vec<LlamaToken>, RunError> {
        let size = self.vocab.n_tokens();
        let check = |id: &u32| {
            i32::try_from(*id).ok().filter(|id| *id < size).map(LlamaToken).ok_or_else(|| {
                RunError::invalid("prompt", format!("token {id} is not in the model's vocabulary of {size}"))
            })
        };
        ids.iter().map(check).collect()
    }
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
        Self { tokens, tools: None, grammar: None }
    }
}
