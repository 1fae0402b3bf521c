//! The choice of the next token.

use std::collections::HashMap;

use bombus_core::chat::{Sampling, TokenAlternative, TokenLogprob};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use llama_cpp_2::token::logit_bias::LlamaLogitBias;

use super::RunError;

/// Defaults of llama.cpp's own tools, so that a model behaves here as it does there.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.95;
const MIN_P: f32 = 0.05;
const REPEAT_LAST_N: u32 = 64;
/// Stands for a probability of zero, whose logarithm JSON has no word for.
const LOGPROB_MIN: f32 = -9_999.0;

/// Chooses tokens for one run.
pub(crate) struct TokenSampler {
    chain: LlamaSampler,
    /// Where the likeliest token is all that the chain looks for: what is added to the logits of single tokens first.
    likeliest: Option<HashMap<usize, f32>>,
    form: Option<Form>,
    /// Tokens that are not chosen, but where the grammar allows nothing else.
    banned: Vec<LlamaToken>,
    /// Whether the grammar does not count yet.
    holds_grammar: bool,
}

/// The form that an answer has to have.
struct Form {
    grammar: LlamaSampler,
    /// The field of the request that calls for it.
    field: &'static str,
    /// Whether any of the answer has it already.
    has_begun: bool,
}

impl Form {
    fn new(model: &LlamaModel, grammar: &str, field: &'static str) -> Result<Self, RunError> {
        let grammar = LlamaSampler::grammar(model, grammar, "root").map_err(|error| {
            RunError::invalid(field, format!("the grammar for this answer cannot be used: {error}"))
        })?;
        Ok(Self { grammar, field, has_begun: false })
    }

    /// Takes the next token of the answer. Returns whether it is allowed.
    fn take(&mut self, token: LlamaToken) -> bool {
        let is_allowed = self.grammar.try_accept(token).is_ok();
        self.has_begun |= is_allowed;
        is_allowed
    }

    /// The error of an answer that cannot go on in this form. What it could not even begin with the model can never write; how it comes to
    /// a dead end later depends on what was drawn.
    fn dead_end(&self) -> RunError {
        if !self.has_begun {
            return RunError::unsupported(self.field, "the model has no token that the demanded format begins with");
        }
        let message = "the model found no token that the demanded format allows; another try may find one";
        RunError::DeadEnd { param: self.field.to_owned(), message: message.to_owned() }
    }
}

impl TokenSampler {
    /// Builds the chain of samplers. A grammar comes with the field of the request that calls for it. `banned` tokens end an answer, and are
    /// chosen only where the grammar allows nothing else.
    pub(crate) fn new(
        model: &LlamaModel,
        sampling: &Sampling,
        grammar: Option<(&str, &'static str)>,
        banned: &[LlamaToken],
    ) -> Result<Self, RunError> {
        let vocab_size = model.n_vocab();
        let mut chain = Vec::new();
        let mut biases: Vec<LlamaLogitBias> =
            banned.iter().map(|token| LlamaLogitBias::new(*token, f32::NEG_INFINITY)).collect();
        for &(token, bias) in &sampling.logit_bias {
            let id = i32::try_from(token).ok().filter(|id| *id < vocab_size).ok_or_else(|| {
                let message = format!("token {token} is not in the model's vocabulary of {vocab_size}");
                RunError::invalid("logit_bias", message)
            })?;
            biases.push(LlamaLogitBias::new(LlamaToken(id), bias));
        }
        if !biases.is_empty() {
            chain.push(LlamaSampler::logit_bias(vocab_size, &biases));
        }
        let repeat = sampling.repeat_penalty.unwrap_or(1.0);
        let frequency = sampling.frequency_penalty.unwrap_or(0.0);
        let presence = sampling.presence_penalty.unwrap_or(0.0);
        if repeat != 1.0 || frequency != 0.0 || presence != 0.0 {
            let last = sampling.repeat_last_n.unwrap_or(REPEAT_LAST_N).min(1 << 16).cast_signed();
            chain.push(LlamaSampler::penalties(vocab_size, last, repeat, frequency, presence));
        }
        let has_penalties = chain.len() > usize::from(!biases.is_empty());
        let temperature = sampling.temperature.unwrap_or(TEMPERATURE);
        let mut likeliest = None;
        if temperature <= 0.0 {
            chain.push(LlamaSampler::greedy());
            likeliest = (!has_penalties).then(|| by_token(&biases));
        } else {
            let top_k = sampling.top_k.unwrap_or(TOP_K).min(1 << 20).cast_signed();
            if top_k > 0 {
                chain.push(LlamaSampler::top_k(top_k));
            }
            chain.push(LlamaSampler::top_p(sampling.top_p.unwrap_or(TOP_P), 1));
            chain.push(LlamaSampler::min_p(sampling.min_p.unwrap_or(MIN_P), 1));
            chain.push(LlamaSampler::temp(temperature));
            chain.push(dice(sampling));
        }
        let form = grammar.map(|(text, field)| Form::new(model, text, field)).transpose()?;
        let (chain, banned) = (LlamaSampler::chain(chain, true), banned.to_vec());
        Ok(Self { chain, likeliest, form, banned, holds_grammar: false })
    }

    /// Lets the penalties know tokens that stand already.
    pub(crate) fn accept_prompt(&mut self, tokens: &[LlamaToken]) {
        self.chain.accept_many(tokens);
    }

    /// Takes a token of an answer that another run began, as if it had been chosen here. `draws`: whether its choice took a random
    /// number, so that the next one is the one that comes after it.
    ///
    /// # Errors
    ///
    /// Where the demanded form of the answer does not allow it.
    pub(crate) fn accept_answer(&mut self, token: LlamaToken, draws: bool) -> Result<(), RunError> {
        if let Some(form) = self.form.as_mut().filter(|_| !self.holds_grammar)
            && !form.take(token)
        {
            return Err(RunError::unsupported(form.field, "the answer so far does not have the demanded form"));
        }
        if draws {
            // llama.cpp draws one number for each choice, also where there is but one candidate.
            let mut only = LlamaTokenDataArray::new(vec![LlamaTokenData::new(token, 1.0, 0.0)], false);
            self.chain.apply(&mut only);
        }
        self.chain.accept(token);
        Ok(())
    }

    /// Lets the next tokens be free of the grammar, or bound by it again.
    pub(crate) fn hold_grammar(&mut self, holds: bool) {
        self.holds_grammar = holds;
    }

    /// Chooses the token that follows the batch's token at `index`.
    ///
    /// # Errors
    ///
    /// Where the grammar has come to a place from where no token of the vocabulary leads on.
    pub(crate) fn sample(&mut self, context: &LlamaContext<'_>, index: i32) -> Result<LlamaToken, RunError> {
        let Some(form) = self.form.as_mut().filter(|_| !self.holds_grammar) else {
            return Ok(match &self.likeliest {
                Some(biases) => likeliest(context.get_logits_ith(index), biases),
                None => self.chain.sample(context, index),
            });
        };
        // Asking the grammar about all tokens takes 100 times as long as asking about the chosen one, which it mostly allows.
        let mut candidates = context.token_data_array_ith(index);
        self.chain.apply(&mut candidates);
        let mut token = selected(&candidates)?;
        let mut chosen = LlamaTokenDataArray::new(vec![LlamaTokenData::new(token, 1.0, 0.0)], false);
        form.grammar.apply(&mut chosen);
        if chosen.data[0].logit() == f32::NEG_INFINITY {
            let mut candidates = context.token_data_array_ith(index);
            form.grammar.apply(&mut candidates);
            let is_allowed = |candidate: &&LlamaTokenData| candidate.logit() > f32::NEG_INFINITY;
            let mut allowed = candidates.data.iter().filter(is_allowed).map(LlamaTokenData::id);
            let Some(first) = allowed.next() else { return Err(form.dead_end()) };
            if self.banned.contains(&first) && allowed.all(|other| self.banned.contains(&other)) {
                // The answer has its form, and nothing can follow on it.
                return Ok(first);
            }
            self.chain.apply(&mut candidates);
            token = selected(&candidates)?;
        }
        if !form.take(token) {
            return Err(form.dead_end());
        }
        self.chain.accept(token);
        Ok(token)
    }
}

/// Makes what chooses among the tokens that are left.
fn dice(sampling: &Sampling) -> LlamaSampler {
    // The largest number asks llama.cpp for a random seed.
    LlamaSampler::dist(sampling.fixed_seed().unwrap_or(u32::MAX))
}

/// Returns the token with the largest logit, the first of several: what llama.cpp's chain of biases and greedy choice returns, which
/// first writes a list of the whole vocabulary.
fn likeliest(logits: &[f32], biases: &HashMap<usize, f32>) -> LlamaToken {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 && !biases.contains_key(&id) {
            best = (id, logit);
        }
    }
    for (&id, bias) in biases {
        let logit = logits[id] + bias;
        if logit > best.1 || (logit == best.1 && id < best.0) {
            best = (id, logit);
        }
    }
    LlamaToken(i32::try_from(best.0).expect("token ids are 31 bits"))
}

/// Returns what is added to the logit of each token that has a bias, or several.
fn by_token(biases: &[LlamaLogitBias]) -> HashMap<usize, f32> {
    let mut sums = HashMap::new();
    for bias in biases {
        *sums.entry(index_of(bias.token())).or_insert(0.0) += bias.bias();
    }
    sums
}

fn index_of(token: LlamaToken) -> usize {
    usize::try_from(token.0).expect("a token of a vocabulary is not negative")
}

fn selected(candidates: &LlamaTokenDataArray) -> Result<LlamaToken, RunError> {
    candidates.selected_token().ok_or_else(|| RunError::Interrupted("no token could be chosen".into()))
}

/// Computes the log probabilities of a token and of the `top` likeliest at its place from the raw logits.
pub(crate) fn logprobs(
    logits: &[f32],
    token: LlamaToken,
    top: u8,
    bytes_of: impl Fn(LlamaToken) -> Vec<u8>,
) -> TokenLogprob {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let normaliser = f64::from(largest) + sum.ln();
    let alternative = |id: usize| TokenAlternative {
        id: u32::try_from(id).expect("a vocabulary has fewer than 2^32 tokens"),
        bytes: bytes_of(LlamaToken(i32::try_from(id).expect("token ids are 31 bits"))),
        logprob: ((f64::from(logits[id]) - normaliser) as f32).max(LOGPROB_MIN),
    };
    let mut order: Vec<usize> = (0..logits.len()).collect();
    let top = usize::from(top).min(order.len());
    if top > 0 && top < order.len() {
        order.select_nth_unstable_by(top, |a, b| logits[*b].total_cmp(&logits[*a]));
    }
    order.truncate(top);
    order.sort_unstable_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    TokenLogprob { token: alternative(index_of(token)), top: order.into_iter().map(alternative).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_repeats_a_choice() {
        let seed_of = |seed| dice(&Sampling { seed, ..Sampling::default() }).get_seed();
        for seed in [0, 7, u32::MAX - 1, u32::MAX] {
            assert_eq!(seed_of(Some(seed)), seed_of(Some(seed)), "{seed}");
        }
        assert_ne!(seed_of(None), seed_of(None));
    }

    #[test]
    fn the_likeliest_token_is_the_one_that_the_chain_finds() {
        let bias = |id, bias| LlamaLogitBias::new(LlamaToken(id), bias);
        let cases: [(&[f32], &[LlamaLogitBias]); 7] = [
            (&[1.0, 3.0, 2.0, 3.0], &[]),
            (&[1.0, 3.0, 2.0, 0.0], &[bias(1, f32::NEG_INFINITY)]),
            (&[1.0, 3.0, 2.0, 0.0], &[bias(3, 100.0), bias(1, -100.0)]),
            (&[1.0, 3.0, 2.0, 0.0], &[bias(2, 0.5), bias(2, 0.75)]),
            (&[1.0, 3.0, 2.0, 0.0], &[bias(0, 2.0)]),
            (&[-1.0, -3.0, -2.0, -4.0], &[bias(0, -2.0), bias(2, -1.0)]),
            (&[f32::NEG_INFINITY; 4], &[bias(2, 1.0)]),
        ];
        for (logits, biases) in cases {
            let entries = (0..).zip(logits).map(|(id, logit)| LlamaTokenData::new(LlamaToken(id), *logit, 0.0));
            let mut candidates = LlamaTokenDataArray::new(entries.collect(), false);
            let bias = LlamaSampler::logit_bias(4, biases);
            LlamaSampler::chain([bias, LlamaSampler::greedy()], true).apply(&mut candidates);
            assert_eq!(likeliest(logits, &by_token(biases)), selected(&candidates).unwrap(), "{logits:?} {biases:?}");
        }
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0_f32, 3.0, 2.0, f32::NEG_INFINITY];
        let result = logprobs(&logits, LlamaToken(2), 2, |token| vec![u8::try_from(token.0).unwrap()]);
        let sum: f32 = [1.0_f32, 3.0, 2.0].iter().map(|logit| logit.exp()).sum();
        assert!((result.token.logprob - (2.0 - sum.ln())).abs() < 1e-5);
        assert_eq!(result.top.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(result.top[0].bytes, [1]);
        assert_eq!(logprobs(&logits, LlamaToken(3), 0, |_| Vec::new()).token.logprob, LOGPROB_MIN);
    }
}
