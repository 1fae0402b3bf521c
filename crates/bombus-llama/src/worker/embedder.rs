//! Embedding vectors: as many inputs as fit are computed together.

use std::collections::VecDeque;

use bombus_core::chat::{EmbedInput, EmbedResponse};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::prompt::PromptReader;
use super::run::Run;
use super::{Engine, RunError};
use crate::protocol::{FromWorker, LoadOptions, RunId, ToWorker};

/// Tokens of several inputs that are computed in one round; a single input may be longer. Until a round ends, cancels wait.
const ROUND_TOKENS: usize = 512;

/// Computes embedding vectors, one batch of one request after the other.
pub(crate) struct Embedder<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    batch_tokens: usize,
    sequences: usize,
    prompts: &'m PromptReader<'m>,
    /// Requests in turn: each gets a batch, then the next.
    jobs: VecDeque<Job>,
    outbox: Vec<FromWorker>,
}

struct Job {
    id: RunId,
    inputs: Vec<Vec<LlamaToken>>,
    vectors: Vec<Vec<f32>>,
}

impl<'m> Embedder<'m> {
    pub(crate) fn new(prompts: &'m PromptReader<'m>, context: LlamaContext<'m>, options: &LoadOptions) -> Self {
        let batch_tokens = context.n_batch() as usize;
        Self {
            batch: LlamaBatch::new(batch_tokens, 1),
            batch_tokens,
            sequences: options.slots as usize,
            prompts,
            jobs: VecDeque::new(),
            outbox: Vec::new(),
            context,
        }
    }

    /// Takes a request into the queue, or refuses it.
    fn submit(&mut self, id: RunId, inputs: &[EmbedInput], truncate: bool) {
        match inputs.iter().map(|input| self.read(input, truncate)).collect() {
            Ok(inputs) => self.jobs.push_back(Job { id, inputs, vectors: Vec::new() }),
            Err(error) => self.outbox.push(FromWorker::Failed { id, error }),
        }
    }

    /// Forgets a request.
    fn cancel(&mut self, id: RunId) {
        self.jobs.retain(|job| job.id != id);
    }

    fn read(&self, input: &EmbedInput, truncate: bool) -> Result<Vec<LlamaToken>, RunError> {
        let most = if truncate { self.batch_tokens } else { usize::MAX };
        let tokens = self.prompts.read_input(input, most)?;
        if tokens.is_empty() {
            return Err(RunError::invalid("inputs", "an input is empty"));
        }
        if tokens.len() > self.batch_tokens {
            let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
            return Err(RunError::ContextExceeded {
                prompt_tokens: count(tokens.len()),
                context_tokens: count(self.batch_tokens),
            });
        }
        Ok(tokens)
    }

    fn compute_batch(&mut self, job: &mut Job) -> Result<(), RunError> {
        self.batch.clear();
        self.context.clear_kv_cache();
        let mut room = self.batch_tokens.min(ROUND_TOKENS);
        let mut ends = Vec::new();
        for (sequence, tokens) in (0..).zip(job.inputs.iter().skip(job.vectors.len()).take(self.sequences)) {
            if tokens.len() > room && !ends.is_empty() {
                break;
            }
            room = room.saturating_sub(tokens.len());
            self.batch.add_sequence(tokens, sequence, true).expect("an input is at most as long as the batch");
            ends.push(self.batch.n_tokens() - 1);
        }
        let interrupted = |reason: String| RunError::Interrupted(format!("the embedding failed: {reason}"));
        self.context.decode(&mut self.batch).map_err(|error| interrupted(error.to_string()))?;
        for (sequence, end) in (0..).zip(ends) {
            let vector = match self.context.embeddings_seq_ith(sequence) {
                Ok(pooled) => pooled,
                // Without pooling the vector of the last token stands for the whole.
                Err(_) => self.context.embeddings_ith(end).map_err(|error| interrupted(error.to_string()))?,
            };
            job.vectors.push(normalised(vector)?);
        }
        Ok(())
    }
}

impl Engine for Embedder<'_> {
    fn take(&mut self, message: ToWorker) {
        match message {
            ToWorker::Embed { id, inputs, truncate } => self.submit(id, &inputs, truncate),
            ToWorker::Cancel { id } => self.cancel(id),
            ToWorker::Credit { .. } => {}
            ToWorker::Load(_) | ToWorker::Chat { .. } => {
                tracing::error!("a message that an embedding model cannot serve");
            }
        }
    }

    fn take_prepared(&mut self, _: RunId, _: Result<Run, RunError>) {
        tracing::error!("an embedding model answers no chat");
    }

    fn has_work(&self) -> bool {
        !self.jobs.is_empty()
    }

    fn round(&mut self) {
        let Some(mut job) = self.jobs.pop_front() else { return };
        match self.compute_batch(&mut job) {
            Err(error) => self.outbox.push(FromWorker::Failed { id: job.id, error }),
            Ok(()) if job.vectors.len() < job.inputs.len() => self.jobs.push_back(job),
            Ok(()) => {
                let tokens: usize = job.inputs.iter().map(Vec::len).sum();
                let prompt_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
                let response = EmbedResponse::new(job.vectors, prompt_tokens);
                self.outbox.push(FromWorker::Embedded { id: job.id, response });
            }
        }
    }

    fn take_messages(&mut self) -> impl Iterator<Item = FromWorker> {
        self.outbox.drain(..)
    }
}

/// Scales a vector to Euclidean length 1.
fn normalised(vector: &[f32]) -> Result<Vec<f32>, RunError> {
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(RunError::Interrupted("the model gave a vector without a direction".into()));
    }
    Ok(vector.iter().map(|value| (f64::from(*value) / length) as f32).collect())
}
