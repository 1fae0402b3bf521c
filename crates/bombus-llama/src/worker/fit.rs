//! Prompts that are longer than the context, made to fit.

use bombus_core::chat::{Message, Part, Role};

use super::RunError;

/// How often the last turn is shortened before it is given up on: every time its size is estimated better.
const TRIES: usize = 8;
/// Shortening a turn takes off at least so many bytes more than was estimated.
const MARGIN_BYTES: usize = 16;
/// Tokens at the beginning that stay where the request does not say how many.
const KEEP_TOKENS: usize = 4;

/// A conversation that fits.
#[derive(Debug, PartialEq)]
pub(crate) struct Fitted<T> {
    pub(crate) tokens: Vec<T>,
    /// Turns that were left out.
    pub(crate) left_out: usize,
}

/// Leaves the oldest turns of a conversation out until its prompt has fewer than `limit` tokens. System messages and the last turn stay;
/// where those alone are too long, the beginning of the last turn's text is left out. `None` where nothing helps.
///
/// `count` tells about how many tokens a text has, at most as many as in a prompt; `render` makes the prompt.
///
/// # Errors
///
/// What `render` says of the shortest conversation.
pub(crate) fn fit_turns<T>(
    messages: &[Message],
    limit: usize,
    count: impl Fn(&str) -> usize,
    render: impl Fn(&[Message]) -> Result<Vec<T>, RunError>,
) -> Result<Option<Fitted<T>>, RunError> {
    let Some(last) = messages.len().checked_sub(1) else { return Ok(None) };
    let is_system = |message: &&Message| message.role == Role::System;
    let sizes: Vec<usize> = messages.iter().map(|message| count(&message.joined_text())).collect();
    let size_from = |start: usize| {
        let systems = messages[..start].iter().zip(&sizes).filter(|(message, _)| is_system(message));
        systems.map(|(_, size)| size).sum::<usize>() + sizes[start..].iter().sum::<usize>()
    };
    let kept_from = |start: usize| -> Vec<Message> {
        messages[..start].iter().filter(is_system).chain(&messages[start..]).cloned().collect()
    };
    // Texts alone are shorter than prompts, so nothing that fits is passed over.
    let first = (1..last).find(|&start| size_from(start) < limit).unwrap_or(last);
    let mut refusal = None;
    for start in first..=last {
        // The answer of a tool makes no sense without the call before it.
        if start < last && matches!(messages[start].role, Role::System | Role::Tool) {
            continue;
        }
        let kept = kept_from(start);
        match render(&kept) {
            Ok(tokens) if tokens.len() < limit => {
                return Ok(Some(Fitted { tokens, left_out: messages.len() - kept.len() }));
            }
            Ok(_) => refusal = None,
            // Some templates want the user to speak first.
            Err(error) => refusal = Some(error),
        }
    }
    match refusal {
        Some(error) => Err(error),
        None => shorten_last(kept_from(last), messages.len(), limit, count, render),
    }
}

fn shorten_last<T>(
    mut kept: Vec<Message>,
    messages: usize,
    limit: usize,
    count: impl Fn(&str) -> usize,
    render: impl Fn(&[Message]) -> Result<Vec<T>, RunError>,
) -> Result<Option<Fitted<T>>, RunError> {
    let left_out = messages - kept.len();
    for _ in 0..TRIES {
        let tokens = render(&kept)?;
        if tokens.len() < limit {
            return Ok(Some(Fitted { tokens, left_out }));
        }
        let over = tokens.len() + 1 - limit;
        let Some(last) = kept.last_mut() else { return Ok(None) };
        let text = last.joined_text();
        let share = over as f64 / count(&text).max(1) as f64;
        let cut = (text.len() as f64 * share) as usize + MARGIN_BYTES;
        let Some(from) = (cut..text.len()).find(|&at| text.is_char_boundary(at)) else { return Ok(None) };
        last.content = vec![Part::Text(text[from..].to_owned())];
    }
    Ok(None)
}

/// Cuts a prompt of tokens so that it has fewer than `limit`: those behind the first `keep` go, oldest first.
pub(crate) fn cut_tokens<T>(tokens: &mut Vec<T>, keep: usize, limit: usize) {
    let target = limit.saturating_sub(1);
    if tokens.len() > target {
        let keep = keep.min(target);
        let over = tokens.len() - target;
        tokens.drain(keep..keep + over);
    }
}

/// Returns how many tokens at the beginning are never dropped: as many as a request says, else a few, and the one that begins every
/// prompt.
pub(crate) fn keep_tokens(wanted: Option<u32>, begins_with: usize) -> usize {
    wanted.map_or(KEEP_TOKENS, |wanted| wanted as usize).saturating_add(begins_with)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(roles: &[(Role, usize)]) -> Vec<Message> {
        roles.iter().map(|(role, words)| Message::text(*role, "word ".repeat(*words))).collect()
    }

    /// Each word is a token, and each turn takes two more.
    fn render(messages: &[Message]) -> Result<Vec<String>, RunError> {
        let words = |message: &Message| message.joined_text().split_whitespace().count() + 2;
        if messages.iter().find(|message| message.role != Role::System).is_some_and(|first| first.role != Role::User) {
            return Err(RunError::invalid("messages", "the user speaks first"));
        }
        Ok(messages.iter().flat_map(|message| vec![message.role.as_str().to_owned(); words(message)]).collect())
    }

    fn fit(messages: &[Message], limit: usize) -> Option<Fitted<String>> {
        fit_turns(messages, limit, |text| text.split_whitespace().count(), render).unwrap()
    }

    #[test]
    fn the_oldest_turns_go_and_the_system_message_stays() {
        use Role::{Assistant, System, User};
        let messages = turns(&[(System, 3), (User, 10), (Assistant, 10), (User, 10), (Assistant, 10), (User, 3)]);
        // System and the last turn take 10 tokens, the two turns between them 24.
        let fitted = fit(&messages, 36).unwrap();
        assert_eq!((fitted.tokens.len(), fitted.left_out), (34, 2));
        let fitted = fit(&messages, 34).unwrap();
        assert_eq!((fitted.tokens.len(), fitted.left_out), (10, 4));
        assert_eq!(fitted.tokens[0], "system");
    }

    #[test]
    fn answers_of_tools_do_not_stay_without_the_call() {
        use Role::{Assistant, Tool, User};
        let messages = turns(&[(User, 5), (Assistant, 5), (Tool, 5), (User, 5)]);
        assert_eq!(fit(&messages, 16).unwrap().left_out, 3);
    }

    #[test]
    fn a_last_turn_that_is_too_long_loses_its_beginning() {
        let messages = turns(&[(Role::System, 3), (Role::User, 5), (Role::Assistant, 5), (Role::User, 1_000)]);
        let fitted = fit(&messages, 100).unwrap();
        assert!((80..100).contains(&fitted.tokens.len()), "{}", fitted.tokens.len());
        assert_eq!(fitted.left_out, 2);
        assert_eq!(fit(&messages, 6), None);
    }

    #[test]
    fn tokens_are_cut_behind_those_that_stay() {
        let mut tokens: Vec<u32> = (0..10).collect();
        cut_tokens(&mut tokens, 2, 6);
        assert_eq!(tokens, [0, 1, 7, 8, 9]);
        cut_tokens(&mut tokens, 2, 6);
        assert_eq!(tokens.len(), 5);
        cut_tokens(&mut tokens, 9, 4);
        assert_eq!(tokens, [0, 1, 7]);
    }
}
