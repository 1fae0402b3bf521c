//! One internal vocabulary for inference requests and their answers.
//!
//! The HTTP dialects (OpenAI's, Ollama's) translate into these types at the edge, and every backend answers in them, so
//! that a dialect never has to know which backend runs the model, nor a backend who asked.

mod event;
mod message;
pub mod output;
mod request;
mod resume;

pub use event::{
    Answerer, ChatEvent, Delta, FinishReason, Timings, TokenAlternative, TokenLogprob, ToolCallDelta, Usage,
};
pub use message::{Image, ImageSource, Message, Part, Role, ToolCall};
pub use request::{
    ChatRequest, DialectOptions, EmbedInput, EmbedRequest, EmbedResponse, KeepAlive, Overflow, Prompt, ResponseFormat,
    Sampling, SchemaLabel, Think, Tool, ToolChoice,
};
pub use resume::{Resume, Trace};
