//! Leaves the oldest turns of a conversation out, by Ollama's rule: system messages and the last turn stay.
//!
//! Servers count tokens by the vocabulary of the model, which is not known here, so what fits is found by trying.

/// Tokens that a picture is taken to have.
pub(crate) const IMAGE_TOKENS: usize = 1024;
/// Tokens of a turn besides its text.
pub(crate) const TURN_TOKENS: usize = 8;
/// Bytes of text that a token may have, in halves, from the hopeful to the sure.
const HALF_BYTES_PER_TOKEN: [usize; 8] = [10, 9, 8, 7, 6, 5, 4, 2];

/// What a turn takes, and whether it always stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Bytes of its text.
    pub(crate) bytes: usize,
    /// Tokens that it has besides.
    pub(crate) tokens: usize,
    pub(crate) stays: bool,
}

/// Returns how many turns to leave out, one number for each try, each larger than the one before; the last leaves out all that may be.
/// `fixed_bytes` is text of the prompt that stays besides the turns, and `told_tokens` what the server said that the whole prompt has, 0 where
/// it did not.
pub(crate) fn tries(turns: &[Turn], fixed_bytes: usize, context_tokens: u32, told_tokens: u32) -> Vec<usize> {
    let may_go = || turns.iter().filter(|turn| !turn.stays);
    let mut tries = Vec::new();
    for half_bytes in HALF_BYTES_PER_TOKEN {
        let tokens = |turn: &Turn| turn.bytes * 2 / half_bytes + turn.tokens;
        let mut left = turns.iter().map(tokens).sum::<usize>() + fixed_bytes * 2 / half_bytes;
        if left < told_tokens as usize {
            continue;
        }
        let mut count = 0;
        for turn in may_go() {
            if left <= context_tokens as usize {
                break;
            }
            left -= tokens(turn);
            count += 1;
        }
        if count > tries.last().copied().unwrap_or(0) {
            tries.push(count);
        }
    }
    let most = may_go().count();
    if most > tries.last().copied().unwrap_or(0) {
        tries.push(most);
    }
    tries
}

/// Returns the conversation without its oldest turns. `sizes` has one entry for each of `turns`.
pub(crate) fn without_oldest<T: Clone>(turns: &[T], sizes: &[Turn], count: usize) -> Vec<T> {
    let mut left_out = 0;
    let stays = |(_, size): &(&T, &Turn)| {
        let goes = !size.stays && left_out < count;
        left_out += usize::from(goes);
        !goes
    };
    turns.iter().zip(sizes).filter(stays).map(|(turn, _)| turn.clone()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(stays: bool, bytes: usize) -> Turn {
        Turn { bytes, tokens: TURN_TOKENS, stays }
    }

    #[test]
    fn the_oldest_turns_that_may_go_do() {
        let sizes = [turn(false, 1), turn(true, 2), turn(false, 3), turn(true, 4)];
        let left = |count| without_oldest(&[1, 2, 3, 4], &sizes, count);
        assert_eq!(left(0), [1, 2, 3, 4]);
        assert_eq!(left(1), [2, 3, 4]);
        assert_eq!(left(2), [2, 4]);
        assert_eq!(left(9), [2, 4]);
    }

    #[test]
    fn tries_go_from_the_hopeful_to_the_sure() {
        let turns: Vec<Turn> = (0..40).map(|at| turn(at == 39, 400)).collect();
        // At five bytes to a token each turn has 88 tokens, at one 408.
        let all = tries(&turns, 0, 2048, 0);
        assert_eq!((all.first(), all.last()), (Some(&17), Some(&39)));
        // At four bytes to a token it has 108, and all of them 4320.
        let told = tries(&turns, 0, 2048, 4320);
        assert_eq!((told.first(), told.last()), (Some(&22), Some(&39)));
    }

    proptest! {
        #[test]
        fn each_try_leaves_out_more_and_the_last_all_that_may_be(
            sizes in proptest::collection::vec((0_usize..5000, any::<bool>()), 0..30),
            fixed in 0_usize..5000,
            context in 1_u32..4000,
            told in 0_u32..100_000,
        ) {
            let turns: Vec<_> = sizes.iter().map(|(bytes, stays)| turn(*stays, *bytes)).collect();
            let tries = tries(&turns, fixed, context, told);
            prop_assert!(tries.is_sorted_by(|a, b| a < b));
            prop_assert!(tries.first().is_none_or(|count| *count > 0));
            prop_assert_eq!(tries.last().copied().unwrap_or(0), turns.iter().filter(|turn| !turn.stays).count());
        }
    }
}
