//! Leaves the oldest turns of a conversation out, by Ollama's rule: system messages and the last turn stay. Ollama would do it too, but
//! would not say so.

use super::request::turn_size;
use super::wire::Message;

/// Bytes of text that a token may have, in halves: what fits is found by trying, from the hopeful to the sure.
const HALF_BYTES_PER_TOKEN: [usize; 8] = [10, 9, 8, 7, 6, 5, 4, 2];

/// Returns how many turns to leave out, one number for each try, each larger than the one before; the last leaves out all that may be.
/// `fixed_bytes` is text of the prompt that stays besides the turns.
pub(super) fn tries(turns: &[Message], fixed_bytes: usize, context_tokens: u32) -> Vec<usize> {
    let most = droppable(turns).count();
    let context_tokens = context_tokens as usize;
    let mut tries = Vec::new();
    for half_bytes in HALF_BYTES_PER_TOKEN {
        let tokens = |(bytes, tokens): (usize, usize)| bytes * 2 / half_bytes + tokens;
        let mut left = turns.iter().map(|turn| tokens(turn_size(turn))).sum::<usize>() + tokens((fixed_bytes, 0));
        let mut count = 0;
        for turn in droppable(turns) {
            if left <= context_tokens {
                break;
            }
            left -= tokens(turn_size(turn));
            count += 1;
        }
        if count > tries.last().copied().unwrap_or(0) {
            tries.push(count);
        }
    }
    if most > tries.last().copied().unwrap_or(0) {
        tries.push(most);
    }
    tries
}

/// Returns the conversation without its oldest turns.
pub(super) fn without_oldest(turns: &[Message], count: usize) -> Vec<Message> {
    let last = turns.len().saturating_sub(1);
    let mut left_out = 0;
    let stays = |(index, turn): &(usize, &Message)| {
        let goes = *index < last && turn.role != "system" && left_out < count;
        left_out += usize::from(goes);
        !goes
    };
    turns.iter().enumerate().filter(stays).map(|(_, turn)| turn.clone()).collect()
}

fn droppable(turns: &[Message]) -> impl Iterator<Item = &Message> {
    turns[..turns.len().saturating_sub(1)].iter().filter(|turn| turn.role != "system")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(role: &str, bytes: usize) -> Message {
        Message { role: role.into(), content: "x".repeat(bytes), ..Message::default() }
    }

    #[test]
    fn the_oldest_turns_go_and_the_system_message_stays() {
        let turns = [turn("user", 1), turn("system", 2), turn("assistant", 3), turn("user", 4)];
        let lengths = |count| without_oldest(&turns, count).iter().map(|turn| turn.content.len()).collect::<Vec<_>>();
        assert_eq!(lengths(0), [1, 2, 3, 4]);
        assert_eq!(lengths(1), [2, 3, 4]);
        assert_eq!(lengths(2), [2, 4]);
        assert_eq!(lengths(9), [2, 4]);
    }

    #[test]
    fn tries_go_from_the_hopeful_to_the_sure() {
        let turns: Vec<Message> = (0..40).map(|_| turn("user", 400)).collect();
        // At five bytes to a token each turn has 88 tokens, at one 408.
        let tries = tries(&turns, 0, 2048);
        assert_eq!((tries.first(), tries.last()), (Some(&17), Some(&39)));
    }

    proptest! {
        #[test]
        fn each_try_leaves_out_more_and_the_last_all_that_may_be(
            sizes in proptest::collection::vec((0_usize..5000, any::<bool>()), 0..30),
            fixed in 0_usize..5000,
            context in 1_u32..4000,
        ) {
            let turns: Vec<_> = sizes.iter().map(|(bytes, system)| turn(if *system { "system" } else { "user" }, *bytes)).collect();
            let tries = tries(&turns, fixed, context);
            prop_assert!(tries.is_sorted_by(|a, b| a < b));
            prop_assert!(tries.first().is_none_or(|count| *count > 0));
            prop_assert_eq!(tries.last().copied().unwrap_or(0), droppable(&turns).count());
        }
    }
}
