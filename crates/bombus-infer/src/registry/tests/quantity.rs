//! How much of an answer is taken.

use bombus_core::chat::{TokenAlternative, TokenLogprob, ToolCallDelta, Trace};

use super::*;

const MIB: usize = 1 << 20;

/// A backend that says the same so many times, and could go on with answers of others.
fn flood(event: &Arc<ChatEvent>, times: usize) -> Arc<Player> {
    let player = Player::always(Play::Flood(event.clone(), times));
    *player.models.lock().unwrap() = Ok(vec![ModelInfo { continues: true, ..text_model("m") }]);
    player
}

fn ask_for_probabilities() -> ChatRequest {
    ChatRequest { logprobs: Some(20), ..ask("m") }
}

/// Counts the pieces of an answer that is longer than any may be.
async fn pieces_of(answer: &mut ChatStream) -> usize {
    let mut pieces = 0;
    let error = loop {
        match answer.next().await.expect("it ends with an error") {
            Ok(ChatEvent::Continued { .. }) => {}
            Ok(_) => pieces += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.to_string(), "the answer broke off: it is longer than 64 MiB");
    pieces
}

/// Reads what a backend says without end, beside another one that could answer and go on. Returns how many pieces came before the error.
async fn flooded(event: ChatEvent, goes_on: bool) -> usize {
    let event = Arc::new(event);
    let other = flood(&Arc::new(word()), 1);
    let backends = backends_of(&[flood(&event, usize::MAX), other.clone()]);
    let held = Arc::strong_count(&event);
    let route = backends.route("m", &text()).await.unwrap();
    let route = if goes_on { route } else { route.without_continuation() };
    let mut answer = route.chat(ask_for_probabilities()).await.unwrap().value;
    let pieces = pieces_of(&mut answer).await;
    assert_eq!(Arc::strong_count(&event), held, "what comes from the backend is dropped at once");
    assert_eq!(answer.next().await, None);
    assert_eq!((state(&backends, "a").running, other.asked().len()), (0, 0), "nobody is asked to go on with it");
    pieces
}

/// A piece of nothing but log probabilities, for about a MiB of memory.
fn probabilities() -> Delta {
    let token = TokenAlternative { id: 0, bytes: Vec::new(), logprob: 0.0 };
    let one = TokenLogprob { top: vec![token.clone(); 20], token };
    let count = MIB / (size_of::<TokenLogprob>() + 20 * size_of::<TokenAlternative>());
    Delta { logprobs: vec![one; count], ..Delta::default() }
}

#[tokio::test]
async fn no_more_others_come_beside_a_token_than_were_asked_for() {
    for wanted in [0, 3] {
        let backends = backends_of(&[flood(&Arc::new(ChatEvent::Delta(probabilities())), 1)]);
        let request = ChatRequest { logprobs: Some(wanted), ..ask("m") };
        let mut answer = backends.route("m", &text()).await.unwrap().chat(request).await.unwrap().value;
        let Some(Ok(ChatEvent::Delta(delta))) = answer.next().await else { panic!("it begins with them") };
        assert!(!delta.logprobs.is_empty());
        assert!(delta.logprobs.iter().all(|one| one.top.len() == usize::from(wanted)));
    }
}

#[tokio::test]
async fn an_answer_without_end_is_ended() {
    let said = || "x".repeat(MIB);
    let call = |arguments| ChatEvent::ToolCall(ToolCallDelta { index: 0, id: None, name: None, arguments });
    let trace = Trace { tokens: vec![0; MIB / size_of::<u32>()], held: Vec::new() };
    let events = [
        ChatEvent::Delta(Delta::text(said())),
        ChatEvent::Thinking(Delta::text(said())),
        call("x".repeat(MIB - size_of::<ToolCallDelta>())),
        ChatEvent::Delta(probabilities()),
        ChatEvent::Delta(Delta { trace: Some(trace), ..Delta::default() }),
    ];
    for event in events {
        for goes_on in [true, false] {
            assert_eq!(flooded(event.clone(), goes_on).await, 64);
        }
    }
}

#[tokio::test]
async fn what_other_runs_told_of_an_answer_counts() {
    let event = Arc::new(ChatEvent::Delta(probabilities()));
    let backends = backends_of(&[flood(&event, 40), flood(&event, usize::MAX)]);
    let route = backends.route("m", &text()).await.unwrap();
    let mut answer = route.chat(ask_for_probabilities()).await.unwrap().value;
    assert_eq!(pieces_of(&mut answer).await, 64);
}

#[tokio::test]
async fn log_probabilities_that_nobody_asked_for_are_not_taken() {
    let twice = |delta| backends_of(&[flood(&Arc::new(ChatEvent::Delta(delta)), 2)]);
    let broken = BackendError::Interrupted { reason: "broken".into() };
    let said = Delta { text: "a".into(), ..probabilities() };
    let route = twice(said).route("m", &text()).await.unwrap().without_continuation();
    let events: Vec<_> = route.chat(ask("m")).await.unwrap().value.collect().await;
    let text = || Ok(ChatEvent::Delta(Delta::text("a")));
    assert_eq!(events, [text(), text(), Err(broken.clone())]);
    assert_eq!(chat(&twice(probabilities())).await.err(), Some(broken), "it had not begun");
}
