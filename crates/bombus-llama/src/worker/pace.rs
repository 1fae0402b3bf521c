//! How many tokens of which run go into a batch.

use std::time::Duration;

/// While answers are being generated, prompts may hold them up for about this long in each round.
const PIECE_DURATION: Duration = Duration::from_millis(100);
/// Prompts that are done within about this time are not cut: one longer wait costs running answers less than many short ones.
const FINISH_DURATION: Duration = Duration::from_millis(400);
/// Longest round without answers: until it ends, cancels and new requests wait.
const ROUND_DURATION: Duration = Duration::from_secs(2);
/// Smallest piece of prompts in a round, in tokens.
const PIECE_TOKENS_MIN: usize = 32;
/// Weight of a new measurement against all before it; smaller for batches of less than `FULL_WEIGHT_TOKENS`, which are slower a token.
const WEIGHT: f64 = 0.3;
const FULL_WEIGHT_TOKENS: f64 = 256.0;

/// What a slot could compute next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Demand {
    /// Nothing: no run, or one that has to wait for its client.
    Nothing,
    /// The next token of an answer.
    Token,
    /// This many tokens of a prompt.
    Prompt(usize),
}

/// Measures how fast prompts are computed.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    tokens_per_second: Option<f64>,
}

impl Pace {
    /// Takes note of a computed batch. Small ones say nothing about prompts and are ignored.
    pub(crate) fn record(&mut self, tokens: usize, elapsed: Duration) {
        if tokens >= PIECE_TOKENS_MIN && !elapsed.is_zero() {
            let measured = tokens as f64 / elapsed.as_secs_f64();
            let known = self.tokens_per_second.unwrap_or(measured);
            let weight = WEIGHT * (tokens as f64 / FULL_WEIGHT_TOKENS).min(1.0);
            self.tokens_per_second = Some(known + weight * (measured - known));
        }
    }

    /// Returns how many prompt tokens a round may have beside running answers, and how many without any.
    pub(crate) fn prompt_tokens(&self, batch_tokens: usize) -> PromptTokens {
        let within = |duration: Duration, unknown: usize| {
            let tokens = self.tokens_per_second.map_or(unknown, |speed| (speed * duration.as_secs_f64()) as usize);
            tokens.clamp(PIECE_TOKENS_MIN.min(batch_tokens), batch_tokens)
        };
        PromptTokens {
            beside_answers: within(PIECE_DURATION, 0),
            finish_beside_answers: within(FINISH_DURATION, 0),
            alone: within(ROUND_DURATION, batch_tokens),
        }
    }
}

/// Prompt tokens that a round may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PromptTokens {
    /// While there are answers to hold up.
    pub(crate) beside_answers: usize,
    /// The same, where these are all that is left of the prompts.
    pub(crate) finish_beside_answers: usize,
    /// While there are none.
    pub(crate) alone: usize,
}

/// Shares a batch of at most `batch_tokens` out: every answer gets its next token; prompts share the rest equally, within `limits`.
pub(crate) fn plan(demands: &[Demand], batch_tokens: usize, limits: PromptTokens) -> Vec<usize> {
    let mut shares: Vec<usize> = demands.iter().map(|demand| usize::from(*demand == Demand::Token)).collect();
    let mut prompts: Vec<(usize, usize)> = demands
        .iter()
        .enumerate()
        .filter_map(|(slot, demand)| if let Demand::Prompt(pending) = demand { Some((slot, *pending)) } else { None })
        .collect();
    // The shortest first, so that what they leave of their shares goes to the others.
    prompts.sort_by_key(|(_, pending)| *pending);
    let count = prompts.len();
    let answers: usize = shares.iter().sum();
    let room = batch_tokens.saturating_sub(answers);
    let pending: usize = prompts.iter().map(|(_, pending)| pending).sum();
    let limit = match answers {
        0 => limits.alone,
        _ if pending <= limits.finish_beside_answers => pending,
        _ => limits.beside_answers,
    };
    let mut room = room.min(limit.max(count));
    for (index, (slot, pending)) in prompts.into_iter().enumerate() {
        shares[slot] = pending.min(room.div_ceil(count - index)).min(room);
        room -= shares[slot];
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: PromptTokens = PromptTokens { beside_answers: 64, finish_beside_answers: 128, alone: 512 };

    #[test]
    fn a_long_prompt_leaves_running_answers_their_pace() {
        let demands = [Demand::Token, Demand::Prompt(10_000), Demand::Nothing, Demand::Token];
        assert_eq!(plan(&demands, 512, LIMITS), [1, 64, 0, 1]);
    }

    #[test]
    fn short_prompts_beside_answers_are_done_at_once() {
        let demands = [Demand::Token, Demand::Prompt(60), Demand::Prompt(68)];
        assert_eq!(plan(&demands, 512, LIMITS), [1, 60, 68]);
        let longer = [Demand::Token, Demand::Prompt(60), Demand::Prompt(69)];
        assert_eq!(plan(&longer, 512, LIMITS), [1, 32, 32]);
    }

    #[test]
    fn prompts_alone_fill_the_batch_and_share_it() {
        assert_eq!(plan(&[Demand::Prompt(1_000), Demand::Nothing], 512, LIMITS), [512, 0]);
        assert_eq!(
            plan(&[Demand::Prompt(1_000), Demand::Prompt(10), Demand::Prompt(1_000)], 512, LIMITS),
            [251, 10, 251]
        );
    }

    #[test]
    fn rounds_of_a_slow_model_are_smaller() {
        let mut pace = Pace::default();
        let least = PIECE_TOKENS_MIN;
        let unknown = PromptTokens { beside_answers: least, finish_beside_answers: least, alone: 512 };
        assert_eq!(pace.prompt_tokens(512), unknown);
        pace.record(500, Duration::from_millis(500));
        let fast = PromptTokens { beside_answers: 100, finish_beside_answers: 400, alone: 512 };
        assert_eq!(pace.prompt_tokens(512), fast);
        pace.record(1, Duration::from_secs(1));
        assert_eq!(pace.prompt_tokens(512), fast, "single tokens do not count");
        (0..50).for_each(|_| pace.record(400, Duration::from_secs(10)));
        let slow = PromptTokens { beside_answers: least, finish_beside_answers: least, alone: 80 };
        assert_eq!(pace.prompt_tokens(512), slow);
    }

    #[test]
    fn a_small_batch_says_less_about_the_pace_than_a_large_one() {
        let alone_after = |tokens: usize| {
            let mut pace = Pace::default();
            pace.record(500, Duration::from_secs(5));
            pace.record(tokens, Duration::from_secs_f64(tokens as f64 / 50.0));
            pace.prompt_tokens(512).alone
        };
        assert!(alone_after(32) > alone_after(512));
    }

    fn demand() -> impl Strategy<Value = Demand> {
        prop_oneof![Just(Demand::Nothing), Just(Demand::Token), (2_usize..2_000).prop_map(Demand::Prompt)]
    }

    proptest! {
        #[test]
        fn every_answer_and_every_prompt_gets_on(demands in prop::collection::vec(demand(), 1..64), piece in 32_usize..512) {
            let shares = plan(&demands, 512, PromptTokens { beside_answers: piece, finish_beside_answers: piece, alone: piece });
            prop_assert!(shares.iter().sum::<usize>() <= 512);
            for (demand, share) in demands.iter().zip(&shares) {
                match demand {
                    Demand::Nothing => prop_assert_eq!(*share, 0),
                    Demand::Token => prop_assert_eq!(*share, 1),
                    Demand::Prompt(pending) => prop_assert!(*share >= 1 && share <= pending),
                }
            }
        }
    }
}
