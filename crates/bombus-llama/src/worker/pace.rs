//! How many tokens of which run go into a batch.

use std::time::Duration;

/// While answers are being generated, prompts may hold them up for about this long in each round.
const PIECE_DURATION: Duration = Duration::from_millis(100);
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

    /// Returns how many prompt tokens a round may have beside running answers.
    pub(crate) fn piece_tokens(&self, batch_tokens: usize) -> usize {
        let tokens = self.tokens_per_second.unwrap_or(0.0) * PIECE_DURATION.as_secs_f64();
        (tokens as usize).clamp(PIECE_TOKENS_MIN.min(batch_tokens), batch_tokens)
    }
}

/// Shares a batch of at most `batch_tokens` out: every answer gets its next token; prompts share the rest equally, and no more than
/// `piece_tokens` of it while there are answers to hold up.
pub(crate) fn plan(demands: &[Demand], batch_tokens: usize, piece_tokens: usize) -> Vec<usize> {
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
    let mut room = if answers > 0 { room.min(piece_tokens.max(count)) } else { room };
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

    #[test]
    fn a_long_prompt_leaves_running_answers_their_pace() {
        let demands = [Demand::Token, Demand::Prompt(10_000), Demand::Nothing, Demand::Token];
        assert_eq!(plan(&demands, 512, 64), [1, 64, 0, 1]);
    }

    #[test]
    fn prompts_alone_fill_the_batch_and_share_it() {
        assert_eq!(plan(&[Demand::Prompt(1_000), Demand::Nothing], 512, 64), [512, 0]);
        assert_eq!(plan(&[Demand::Prompt(1_000), Demand::Prompt(10), Demand::Prompt(1_000)], 512, 64), [251, 10, 251]);
    }

    #[test]
    fn the_piece_follows_the_measured_speed() {
        let mut pace = Pace::default();
        assert_eq!(pace.piece_tokens(512), PIECE_TOKENS_MIN);
        pace.record(500, Duration::from_millis(500));
        assert_eq!(pace.piece_tokens(512), 100);
        pace.record(1, Duration::from_secs(1));
        assert_eq!(pace.piece_tokens(512), 100, "single tokens do not count");
        (0..50).for_each(|_| pace.record(512, Duration::from_millis(10)));
        assert_eq!(pace.piece_tokens(512), 512);
    }

    fn demand() -> impl Strategy<Value = Demand> {
        prop_oneof![Just(Demand::Nothing), Just(Demand::Token), (2_usize..2_000).prop_map(Demand::Prompt)]
    }

    proptest! {
        #[test]
        fn every_answer_and_every_prompt_gets_on(demands in prop::collection::vec(demand(), 1..64), piece in 32_usize..512) {
            let shares = plan(&demands, 512, piece);
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
