//! One internal vocabulary for inference requests and their answers.
//!
//! The HTTP dialects (OpenAI, later Ollama and others) translate into these types at the edge, and every backend answers in them, so
//! that a dialect never has to know which backend runs the model, nor a backend who asked.

mod event;
mod message;
mod request;

pub use event::{ChatEvent, Delta, FinishReason, Timings, TokenAlternative, TokenLogprob, ToolCallDelta, Usage};
pub use message::{Image, Message, Part, Role, ToolCall};
pub use request::{
    ChatRequest, EmbedInput, EmbedRequest, EmbedResponse, Prompt, ResponseFormat, Sampling, Tool, ToolChoice,
};
