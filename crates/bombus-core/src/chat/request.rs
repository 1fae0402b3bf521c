use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Answerer, Image, Message, Resume};

/// A request to generate text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The model's name as the client wrote it, resolved by [`crate::model::ModelName`].
    pub model: String,
    /// What the model continues.
    pub prompt: Prompt,
    /// Tools that the model may call; only with [`Prompt::Chat`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// Whether and which tool has to be called.
    #[serde(default)]
    pub tool_choice: ToolChoice,
    /// The form that the answer has to have.
    #[serde(default)]
    pub response_format: ResponseFormat,
    /// What the client says of the schema in `response_format`, where there is one.
    #[serde(default, skip_serializing_if = "SchemaLabel::is_empty")]
    pub schema_label: SchemaLabel,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Texts at which the answer ends; they are not part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Most tokens to generate. `None`: until the model ends or its context is full.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// Goes on past the model's end-of-text tokens, as llama-server's option of that name does; for measurements.
    #[serde(default)]
    pub ignore_eos: bool,
    /// `Some(k)`: report the log probability of each token and of the `k` likeliest alternatives (0 to 20).
    #[serde(default)]
    pub logprobs: Option<u8>,
    /// What is to stand after the answer, for models that can fill in; only with [`Prompt::Raw`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Pictures that go with the prompt, which says itself where they stand; only with [`Prompt::Raw`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<Image>,
    /// A prompt template in place of the model's own: Go's notation, as Ollama has it, or Jinja.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether a model that can think before it answers does so. `None` leaves it to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think: Option<Think>,
    /// Tokens of the model's own vocabulary that stand before the prompt: the conversation so far, as an earlier answer told it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_tokens: Vec<u32>,
    /// Whether [`super::ChatEvent::Done`] is to tell the tokens of prompt and answer.
    #[serde(default)]
    pub return_tokens: bool,
    /// Tokens that prompt and answer need together. `None` leaves it to the backend.
    #[serde(default)]
    pub context_tokens: Option<u32>,
    /// What happens to a conversation that is longer than the context.
    #[serde(default)]
    pub overflow: Overflow,
    /// How long the model stays loaded after this request. `None` leaves it to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// What only one dialect has words for.
    #[serde(default, skip_serializing_if = "DialectOptions::is_empty")]
    pub dialect: DialectOptions,
    /// Whether the pieces of the answer are to tell their [`super::Trace`], where the backend can.
    #[serde(default)]
    pub traced: bool,
    /// The beginning of the answer, where another run has given it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

impl ChatRequest {
    /// Builds a request with every option at its default.
    #[must_use]
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            model: model.into(),
            prompt,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            response_format: ResponseFormat::default(),
            schema_label: SchemaLabel::default(),
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens: None,
            ignore_eos: false,
            logprobs: None,
            suffix: None,
            images: Vec::new(),
            template: None,
            think: None,
            earlier_tokens: Vec::new(),
            return_tokens: false,
            context_tokens: None,
            overflow: Overflow::default(),
            keep_alive: None,
            dialect: DialectOptions::default(),
            traced: false,
            resume: None,
        }
    }
}

/// Whether a model thinks before it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Think {
    /// It answers at once.
    Off,
    /// It thinks, and what it thinks is told apart from the answer.
    On,
    /// It thinks as much as this word of its own asks for, for example `high`.
    Level(String),
}

/// What happens to a conversation that is longer than the context. By default it is refused, and an answer ends where the context does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overflow {
    /// Leaves the oldest turns of a prompt out; system messages and the last turn stay.
    pub truncate: bool,
    /// Drops the oldest half of a full context, so that the answer goes on.
    pub shift: bool,
    /// How many tokens at the beginning are never dropped by `shift`. `None`: as many as the backend thinks right.
    pub keep_tokens: Option<u32>,
}

/// How long a model stays loaded after its last use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepAlive {
    /// For so many seconds; 0 unloads it when the request ends.
    Seconds(u64),
    /// Until memory is needed for others, or the backend ends.
    Forever,
}

/// What the model is asked to continue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompt {
    /// A conversation, put into the model's own chat template.
    Chat(Vec<Message>),
    /// Text as it stands, without a template.
    Raw(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// The function's name.
    pub name: String,
    /// What it does, for the model to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// Whether the arguments have to fit the schema exactly. `None` leaves it to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Whether the model has to call a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No tool is called.
    None,
    /// Some tool has to be called.
    Required,
    /// This tool has to be called.
    Named(String),
}

/// The form of the answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Free text.
    #[default]
    Text,
    /// Some JSON object.
    JsonObject,
    /// JSON that fits this schema.
    JsonSchema(Value),
}

/// What `OpenAI`'s dialect says of the schema of an answer beside the schema itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaLabel {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is for, for the model to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether the answer has to fit it exactly. `None` leaves it to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

impl SchemaLabel {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What only one dialect has words for. Backends of that dialect are told it as the client said it; to others it means nothing. Whoever
/// reads a client's request bounds it, and backends pass on only what a client could have said: requests of peers are not read so.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DialectOptions {
    /// Fields of a request in `OpenAI`'s dialect, for example `parallel_tool_calls`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub openai: Map<String, Value>,
    /// `options` of a request in Ollama's dialect that say how an engine runs, for example `num_gpu`: numbers, texts and booleans.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub ollama: Map<String, Value>,
}

impl DialectOptions {
    fn is_empty(&self) -> bool {
        self.openai.is_empty() && self.ollama.is_empty()
    }
}

/// How the next token is chosen. `None` leaves a value to the backend's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Softmax temperature, at least 0; 0 always takes the likeliest token.
    pub temperature: Option<f32>,
    /// Nucleus sampling: keep the smallest set with this total probability, 0 to 1.
    pub top_p: Option<f32>,
    /// Keep only this many likeliest tokens; 0 keeps all.
    pub top_k: Option<u32>,
    /// Keep tokens at least this probable relative to the likeliest, 0 to 1.
    pub min_p: Option<f32>,
    /// Makes the choice repeatable.
    pub seed: Option<u32>,
    /// Divides the logits of recent tokens; 1 has no effect.
    pub repeat_penalty: Option<f32>,
    /// How many recent tokens the penalties look at.
    pub repeat_last_n: Option<u32>,
    /// Subtracted from the logit of every token that has occurred, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Subtracted from a token's logit for each time it has occurred, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of single tokens: (token id, bias from -100 to 100).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(u32, f32)>,
}

impl Sampling {
    /// Reads a seed as requests write it: -1 stands for a random one, and of any other number the lower 32 bits count.
    #[must_use]
    pub fn seed_of(number: i64) -> Option<u32> {
        (number != -1).then_some((number & i64::from(u32::MAX)) as u32)
    }

    /// Reads a repetition penalty as Ollama takes it, which knows no ranges: 0 and below stand for none, as they do to its newest engine, and
    /// any other number is brought into 0.1 to 10.
    #[must_use]
    pub fn repeat_penalty_of(number: f32) -> f32 {
        if number <= 0.0 { 1.0 } else { number.clamp(0.1, 10.0) }
    }

    /// Reads a penalty for presence or frequency as Ollama takes it: any number is brought into -2 to 2.
    #[must_use]
    pub fn penalty_of(number: f32) -> f32 {
        number.clamp(-2.0, 2.0)
    }

    /// Returns the seed for engines to which the largest number stands for a random one. Half of it takes its place: a number next to it
    /// may well be the seed of another answer to the same request.
    #[must_use]
    pub fn fixed_seed(&self) -> Option<u32> {
        self.seed.map(|seed| if seed == u32::MAX { u32::MAX / 2 } else { seed })
    }
}

/// A request for embedding vectors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedRequest {
    /// The model's name as the client wrote it.
    pub model: String,
    /// One vector is made of each.
    pub inputs: Vec<EmbedInput>,
    /// Cuts inputs that are longer than the context at its end, where they are refused else.
    #[serde(default)]
    pub truncate: bool,
    /// Length of the vectors, cut from longer ones and brought to length 1 again. `None`: as the model makes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Tokens that the longest input needs. `None` leaves it to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_tokens: Option<u32>,
    /// How long the model stays loaded after this request. `None` leaves it to the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// What only one dialect has words for.
    #[serde(default, skip_serializing_if = "DialectOptions::is_empty")]
    pub dialect: DialectOptions,
}

impl EmbedRequest {
    /// Builds a request with every option at its default.
    #[must_use]
    pub fn new(model: impl Into<String>, inputs: Vec<EmbedInput>) -> Self {
        let (model, dialect) = (model.into(), DialectOptions::default());
        Self { model, inputs, truncate: false, dimensions: None, context_tokens: None, keep_alive: None, dialect }
    }
}

/// One input of an [`EmbedRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedInput {
    /// Text, tokenised by the model.
    Text(String),
    /// Token ids of the model's own vocabulary.
    Tokens(Vec<u32>),
}

/// The answer to an [`EmbedRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedResponse {
    /// One vector of Euclidean length 1 for each input, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs together.
    pub prompt_tokens: u32,
    /// Time that the model took to load, in milliseconds; 0 where it was loaded already, or the backend does not tell.
    #[serde(default)]
    pub load_ms: f64,
    /// Who made them, where a peer told that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Answerer>,
}

impl EmbedResponse {
    /// Builds the answer of a backend of this node.
    #[must_use]
    pub fn new(vectors: Vec<Vec<f32>>, prompt_tokens: u32) -> Self {
        Self { vectors, prompt_tokens, load_ms: 0.0, by: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_seed_and_minus_one_are_random() {
        let fixed = |seed| Sampling { seed, ..Sampling::default() }.fixed_seed();
        for number in [0, 7, -2, i64::from(u32::MAX), i64::MAX, i64::MIN] {
            let seed = fixed(Sampling::seed_of(number));
            assert!(seed.is_some_and(|seed| seed != u32::MAX), "{number} gives {seed:?}");
        }
        assert_eq!((fixed(Sampling::seed_of(-1)), fixed(None)), (None, None));
        // Answers to one request have seeds that follow each other.
        let several = [u32::MAX - 1, u32::MAX, 0].map(|seed| fixed(Some(seed)).unwrap());
        assert!(several[0] != several[1] && several[1] != several[2], "{several:?}");
    }
}
