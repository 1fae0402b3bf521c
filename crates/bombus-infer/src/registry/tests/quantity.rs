//! How much of an answer is taken.

use bombus_core::chat::ToolCallDelta;

use super::*;

const MIB: usize = 1 << 20;

/// Reads what a backend says without end, beside another one that could answer. Returns how many pieces came before the error.
async fn flooded(event: ChatEvent, goes_on: bool) -> usize {
    let event = Arc::new(event);
    let other = Player::always(Play::Say(1));
    let backends = backends_of(&[Player::always(Play::Flood(event.clone())), other.clone()]);
    let held = Arc::strong_count(&event);
    let route = backends.route("m", &text()).await.unwrap();
    let route = if goes_on { route } else { route.without_continuation() };
    let mut answer = route.chat(ask("m")).await.unwrap().value;
    let mut pieces = 0;
    let error = loop {
        match answer.next().await.expect("it ends with an error") {
            Ok(_) => pieces += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.to_string(), "the answer broke off: it is longer than 64 MiB");
    assert_eq!(Arc::strong_count(&event), held, "what comes from the backend is dropped at once");
    assert_eq!(answer.next().await, None);
    assert_eq!((state(&backends, "a").running, other.asked().len()), (0, 0), "nobody is asked to go on with it");
    pieces
}

#[tokio::test]
async fn an_answer_without_end_is_ended() {
    let said = || "x".repeat(MIB);
    let call = ToolCallDelta { index: 0, id: None, name: None, arguments: said() };
    let events =
        [ChatEvent::Delta(Delta::text(said())), ChatEvent::Thinking(Delta::text(said())), ChatEvent::ToolCall(call)];
    for event in events {
        for goes_on in [true, false] {
            assert_eq!(flooded(event.clone(), goes_on).await, 64);
        }
    }
}
