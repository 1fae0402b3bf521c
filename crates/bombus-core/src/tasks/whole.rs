use serde::{Deserialize, Serialize};

use crate::chat::{
    ChatRequest, EmbedInput, EmbedRequest, EmbedResponse, FinishReason, Prompt, TokenLogprob, ToolCall, Usage,
};

/// A request to a model as a whole, with tools, log probabilities and all that the fields of a task have no names for. It stands in place
/// of prompt, messages and options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WholeRequest {
    /// Text is generated.
    Chat {
        /// What is asked: mostly one request. Each gets answers of its own.
        requests: Vec<ChatRequest>,
        /// How many answers each request gets, at least 1; seeds follow each other.
        answers: u32,
        /// A word of the requester's own, which the answer carries.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        form: String,
    },
    /// Vectors are made.
    Embed {
        /// Of what.
        request: Box<EmbedRequest>,
        /// A word of the requester's own, which the answer carries.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        form: String,
    },
    /// It stands in a block of its own.
    Elsewhere,
}

impl WholeRequest {
    /// Returns the model that is asked; empty where that is not known.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Chat { requests, .. } => requests.first().map_or("", |request| &request.model),
            Self::Embed { request, .. } => &request.model,
            Self::Elsewhere => "",
        }
    }

    /// Returns whether it asks for anything at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Chat { requests, answers, .. } => {
                let asks = |request: &ChatRequest| !matches!(&request.prompt, Prompt::Chat(turns) if turns.is_empty());
                *answers == 0 || requests.is_empty() || !requests.iter().all(asks)
            }
            Self::Embed { request, .. } => {
                let is_empty = |input: &EmbedInput| match input {
                    EmbedInput::Text(text) => text.is_empty(),
                    EmbedInput::Tokens(tokens) => tokens.is_empty(),
                };
                request.inputs.is_empty() || request.inputs.iter().any(is_empty)
            }
            Self::Elsewhere => true,
        }
    }

    /// Returns every single request to a model that it stands for, in the order of the answers; none where vectors are made.
    pub fn each(&self) -> impl Iterator<Item = ChatRequest> + '_ {
        let (requests, answers) = match self {
            Self::Chat { requests, answers, .. } => (requests.as_slice(), *answers),
            Self::Embed { .. } | Self::Elsewhere => (&[][..], 0),
        };
        requests.iter().flat_map(move |request| {
            (0..answers).map(move |index| {
                let mut request = request.clone();
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(index));
                request
            })
        })
    }
}

/// What came of a [`WholeRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WholeAnswer {
    /// Texts, in the order of [`WholeRequest::each`].
    Chat {
        /// Each answer.
        answers: Vec<ChatAnswer>,
        /// How many of them each request has got.
        answers_each: u32,
        /// The requester's own word.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        form: String,
    },
    /// Vectors.
    Embed {
        /// Each vector.
        response: EmbedResponse,
        /// The requester's own word.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        form: String,
    },
    /// It stands in a block of its own.
    Elsewhere,
}

/// An answer of a model with everything that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatAnswer {
    /// What it says.
    pub text: String,
    /// What it thought before.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub thinking: String,
    /// The tools that it calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The tokens behind the text, where log probabilities were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub finish: FinishReason,
    /// What it cost.
    pub usage: Usage,
}

impl WholeAnswer {
    /// Returns the text of the first answer; empty where there is none.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Chat { answers, .. } => answers.first().map_or("", |answer| &answer.text),
            Self::Embed { .. } | Self::Elsewhere => "",
        }
    }

    /// Returns the first vector, where vectors were made.
    #[must_use]
    pub fn vector(&self) -> Option<Vec<f64>> {
        match self {
            Self::Embed { response, .. } => {
                response.vectors.first().map(|vector| vector.iter().copied().map(f64::from).collect())
            }
            Self::Chat { .. } | Self::Elsewhere => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::chat::{Message, Role, Sampling, TokenAlternative, Tool, ToolChoice};

    #[test]
    fn a_request_and_its_answer_come_through_json_unchanged() {
        let request = ChatRequest {
            tools: vec![Tool {
                name: "look".into(),
                description: None,
                parameters: json!({ "type": "object" }),
                strict: None,
            }],
            tool_choice: ToolChoice::Named("look".into()),
            logprobs: Some(2),
            sampling: Sampling {
                temperature: Some(0.1),
                seed: Some(u32::MAX),
                logit_bias: vec![(3, -1.5)],
                ..Sampling::default()
            },
            ..ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, "Hi")]))
        };
        let whole = WholeRequest::Chat { requests: vec![request], answers: 2, form: "chat".into() };
        let written = serde_json::to_value(&whole).unwrap();
        assert_eq!(serde_json::from_value::<WholeRequest>(written).unwrap(), whole);
        let seeds: Vec<_> = whole.each().map(|request| request.sampling.seed).collect();
        assert_eq!(seeds, [Some(u32::MAX), Some(0)]);
        assert!(!whole.is_empty() && WholeRequest::Elsewhere.is_empty());

        let token =
            TokenLogprob { token: TokenAlternative { id: 1, bytes: vec![226], logprob: -0.1 }, top: Vec::new() };
        let answer = ChatAnswer {
            text: "Ho".into(),
            thinking: String::new(),
            tool_calls: Vec::new(),
            logprobs: vec![token],
            finish: FinishReason::Length,
            usage: Usage::default(),
        };
        let whole = WholeAnswer::Chat { answers: vec![answer], answers_each: 1, form: String::new() };
        let written = serde_json::to_value(&whole).unwrap();
        assert_eq!(serde_json::from_value::<WholeAnswer>(written).unwrap(), whole);
        assert_eq!((whole.text(), whole.vector()), ("Ho", None));
    }

    #[test]
    fn what_asks_for_nothing_is_told() {
        let chat = |prompt| WholeRequest::Chat {
            requests: vec![ChatRequest::new("m", prompt)],
            answers: 1,
            form: String::new(),
        };
        assert!(chat(Prompt::Chat(Vec::new())).is_empty());
        assert!(!chat(Prompt::Raw(String::new())).is_empty(), "a model may begin a text of its own");
        let embed =
            |inputs| WholeRequest::Embed { request: Box::new(EmbedRequest::new("m", inputs)), form: String::new() };
        assert!(embed(Vec::new()).is_empty() && embed(vec![EmbedInput::Text(String::new())]).is_empty());
        assert!(!embed(vec![EmbedInput::Tokens(vec![1])]).is_empty());
    }
}
