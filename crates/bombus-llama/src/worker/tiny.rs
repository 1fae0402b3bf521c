//! A model of a few kilobytes. It finds all tokens equally likely, so that at temperature 0 it says the first of those that may come.

use std::fs;
use std::sync::LazyLock;

use bombus_core::chat::{ChatRequest, Prompt, Sampling};
use bombus_testkit::gguf::{GgufBuilder, Storage};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::{LogOptions, send_logs_to_tracing};
use tempfile::TempDir;

use super::generator::Generator;
use super::prompt::PromptReader;
use super::run::Run;
use super::{RunError, load_model, make_context};
use crate::protocol::{LoadOptions, ModelKind, RunId};

/// Length of everything in the model.
const WIDTH: u64 = 32;

static BACKEND: LazyLock<LlamaBackend> = LazyLock::new(|| {
    send_logs_to_tracing(LogOptions::default());
    LlamaBackend::init().expect("nobody else starts it")
});

/// The model, loaded with a context of so many tokens.
pub(crate) struct TinyModel {
    model: LlamaModel,
    options: LoadOptions,
    _folder: TempDir,
}

impl TinyModel {
    /// Loads it. `context_tokens` is what one run may have, and all runs together.
    pub(crate) fn load(slots: u32, context_tokens: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        fs::write(&path, file()).unwrap();
        let options = LoadOptions {
            path,
            kind: ModelKind::Generate,
            context_tokens,
            kv_tokens: context_tokens,
            slots,
            batch_tokens: 32,
            threads: 1,
            gpu_layers: 0,
            shelf_bytes: 0,
        };
        let model = load_model(&BACKEND, &options.path, options.gpu_layers).unwrap();
        Self { model, options, _folder: folder }
    }

    pub(crate) fn prompts(&self) -> PromptReader<'_> {
        PromptReader::new(&self.model)
    }

    pub(crate) fn generator<'m>(&'m self, prompts: &'m PromptReader<'m>) -> Generator<'m> {
        let context = make_context(&BACKEND, &self.model, &self.options).unwrap();
        Generator::new(&self.model, prompts, context, &self.options)
    }

    /// Reads a request whose client takes all events at once.
    pub(crate) fn run(&self, prompts: &PromptReader<'_>, id: RunId, request: ChatRequest) -> Result<Run, RunError> {
        Run::new(id, 10_000, request, &self.model, prompts, self.options.context_tokens as usize)
    }
}

/// Asks for so many tokens behind a prompt of so many.
pub(crate) fn ask(prompt_tokens: usize, max_tokens: u32) -> ChatRequest {
    ChatRequest {
        sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
        max_tokens: Some(max_tokens),
        ..ChatRequest::new("tiny", Prompt::Tokens(vec![0; prompt_tokens]))
    }
}

/// Tokens are `a`, the beginning and the end of a text, a stand-in for each byte, the blank and the quotation mark.
fn file() -> Vec<u8> {
    let bytes: Vec<String> = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>")).collect();
    let mut tokens = vec!["a", "<s>", "</s>"];
    tokens.extend(bytes.iter().map(String::as_str));
    tokens.extend(["\u{2581}", "\""]);
    let vocabulary = u64::try_from(tokens.len()).unwrap();
    let builder = GgufBuilder::new()
        .text("general.architecture", "llama")
        .number("llama.block_count", 1)
        .number("llama.context_length", 4_096)
        .number("llama.embedding_length", 32)
        .number("llama.feed_forward_length", 32)
        .number("llama.attention.head_count", 2)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        // Else it would be the first one.
        .number("tokenizer.ggml.unknown_token_id", 3)
        .tensor("token_embd.weight", &[WIDTH, vocabulary], Storage::F32)
        .tensor("output_norm.weight", &[WIDTH], Storage::F32)
        .tensor("blk.0.attn_norm.weight", &[WIDTH], Storage::F32)
        .tensor("blk.0.ffn_norm.weight", &[WIDTH], Storage::F32);
    let square = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let named = square.map(|name| format!("blk.0.{name}.weight"));
    named.iter().fold(builder, |builder, name| builder.tensor(name, &[WIDTH, WIDTH], Storage::F32)).blank().build()
}
