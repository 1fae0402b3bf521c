//! Which turns of a conversation may be left out for a server of this dialect.

use bombus_core::chat::{ChatRequest, Message, Part, Prompt, Role};

use crate::shorten::{self, IMAGE_TOKENS, TURN_TOKENS, Turn};

/// Tokens that are kept for an answer whose length is not limited.
const ANSWER_TOKENS: u32 = 1024;

/// Returns the conversations to try in place of one that is longer than the context, each shorter than the one before, with how many turns were
/// left out. Servers of this dialect refuse a tool's answer without its call, so these go and stay together.
pub(super) fn shorter(
    request: &ChatRequest,
    prompt_tokens: u32,
    context_tokens: u32,
) -> impl Iterator<Item = (u32, Vec<Message>)> {
    let turns = if let Prompt::Chat(turns) = &request.prompt { &turns[..] } else { &[] };
    let sizes = sizes(turns);
    let tool_bytes = |tool: &bombus_core::chat::Tool| {
        tool.name.len() + tool.description.as_ref().map_or(0, String::len) + tool.parameters.to_string().len()
    };
    let fixed_bytes = request.tools.iter().map(tool_bytes).sum();
    // Without room for an answer it would end as it begins.
    let answer_tokens = request.max_tokens.unwrap_or(ANSWER_TOKENS).min(context_tokens / 2);
    let mut counts = shorten::tries(&sizes, fixed_bytes, context_tokens - answer_tokens, prompt_tokens);
    counts.iter_mut().for_each(|count| *count = with_answers_of_tools(turns, &sizes, *count));
    counts.dedup();
    counts.into_iter().map(move |count| {
        let left_out = u32::try_from(count).unwrap_or(u32::MAX);
        (left_out, shorten::without_oldest(turns, &sizes, count))
    })
}

fn sizes(turns: &[Message]) -> Vec<Turn> {
    let last = last_exchange(turns);
    let size = |(index, turn): (usize, &Message)| {
        let calls: usize = turn.tool_calls.iter().map(|call| call.name.len() + call.arguments.len()).sum();
        let pictures = turn.content.iter().filter(|part| matches!(part, Part::Image(_))).count();
        Turn {
            bytes: turn.joined_text().len() + turn.thinking.as_ref().map_or(0, String::len) + calls,
            tokens: TURN_TOKENS + pictures * IMAGE_TOKENS,
            stays: index >= last || turn.role == Role::System,
        }
    };
    turns.iter().enumerate().map(size).collect()
}

/// Returns where the end begins that always stays: the last turn, and where tools speak there, the turn that called them.
fn last_exchange(turns: &[Message]) -> usize {
    let mut at = turns.len().saturating_sub(1);
    while at > 0 && turns[at].role == Role::Tool {
        at -= 1;
    }
    at
}

/// Returns how many turns go where `count` are to: the answers of tools whose calls go are left out, too.
fn with_answers_of_tools(turns: &[Message], sizes: &[Turn], count: usize) -> usize {
    let next = turns.iter().zip(sizes).filter(|(_, size)| !size.stays).skip(count);
    count + next.take_while(|(turn, _)| turn.role == Role::Tool).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_tools_and_their_answers_go_and_stay_together() {
        use Role::{Assistant, System, Tool, User};
        let turns = [System, User, Assistant, Tool, Tool, Assistant, User, Assistant, Tool, Tool];
        let turns = turns.map(|role| Message::text(role, "x"));
        let sizes = sizes(&turns);
        let left_out: Vec<_> = (0..7).map(|count| with_answers_of_tools(&turns, &sizes, count)).collect();
        assert_eq!(left_out, [0, 1, 4, 4, 4, 5, 6]);
        let stays: Vec<_> = (0..10).filter(|index| sizes[*index].stays).collect();
        assert_eq!(stays, [0, 7, 8, 9], "the system message, and the end with the call that it answers");
    }
}
