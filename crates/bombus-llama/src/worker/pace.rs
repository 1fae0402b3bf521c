//! How many tokens of which run go into a batch.

use std::time::Duration;

/// While answers are being generated, prompts may hold them up for about this long in each round.
const PIECE_DURATION: Duration = Duration::from_millis(100);
/// Longest round without answers: until it ends, cancels and new requests wait.
const ROUND_DURATION: Duration = Duration::from_secs(2);
/// Smallest piece of prompts in a round, in tokens.
const PIECE_TOKENS_MIN: usize = 32;
/// Weight of a new measurement against all before it.
const WEIGHT: f64 = 0.3;

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
            self.tokens_per_second = Some(known + WEIGHT * (measured - known));
        }
    }

    /// Returns how many prompt tokens a round may have beside running answers, and how many without any.
    pub(crate) fn prompt_tokens(&self, batch_tokens: usize) -> PromptTokens {
        let within = |duration: Duration, unknown: usize| {
            let tokens = self.tokens_per_second.map_or(unknown, |speed| (speed * duration.as_secs_f64()) as usize);
            tokens.clamp(PIECE_TOKENS_MIN.min(batch_tokens), batch_tokens)
        };
        PromptTokens { beside_answers: within(PIECE_DURATION, 0), alone: within(ROUND_DURATION, batch_tokens) }
    }
}

/// Prompt tokens that a round may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PromptTokens {
    /// While there are answers to hold up.
    pub(crate) beside_answers: usize,
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
    let limit = if answers > 0 { limits.beside_answers } else { limits.alone };
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

    const LIMITS: PromptTokens = PromptTokens { beside_answers: 64, alone: 512 };

    #[test]
    fn a_long_prompt_leaves_running_answers_their_pace() {
        let demands = [Demand::Token, Demand::Prompt(10_000), Demand::Nothing, Demand::Token];
        assert_eq!(plan(&demands, 512, LIMITS), [1, 64, 0, 1]);
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
        let unknown = PromptTokens { beside_answers: PIECE_TOKENS_MIN, alone: 512 };
        assert_eq!(pace.prompt_tokens(512), unknown);
        pace.record(500, Duration::from_millis(500));
        assert_eq!(pace.prompt_tokens(512), PromptTokens { beside_answers: 100, alone: 512 });
        pace.record(1, Duration::from_secs(1));
        assert_eq!(pace.prompt_tokens(512).beside_answers, 100, "single tokens do not count");
        (0..50).for_each(|_| pace.record(400, Duration::from_secs(10)));
        assert_eq!(pace.prompt_tokens(512), PromptTokens { beside_answers: PIECE_TOKENS_MIN, alone: 40 });
    }

    fn demand() -> impl Strategy<Value = Demand> {
        prop_oneof![Just(Demand::Nothing), Just(Demand::Token), (2_usize..2_000).prop_map(Demand::Prompt)]
    }

    proptest! {
        #[test]
        fn every_answer_and_every_prompt_gets_on(demands in prop::collection::vec(demand(), 1..64), piece in 32_usize..512) {
            let shares = plan(&demands, 512, PromptTokens { beside_answers: piece, alone: piece });
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
