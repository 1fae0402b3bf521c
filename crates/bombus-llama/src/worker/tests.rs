use super::tiny::ask;
use super::*;

/// Writes what a node says.
fn said(messages: impl IntoIterator<Item = ToWorker>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        write_message(&mut bytes, &message).unwrap();
    }
    bytes
}

fn chat(id: RunId) -> ToWorker {
    ToWorker::Chat { id, credit: 1, request: Box::new(ask(1, 1)) }
}

#[test]
fn the_end_of_the_node_is_heard_however_many_requests_wait() {
    let ((inbox, _untaken), unread) = (channel(), Unread::default());
    let embeds = (0..3_000).map(|id| ToWorker::Embed { id, inputs: Vec::new(), truncate: false });
    let bytes = said((0..3_000).map(chat).chain(embeds));
    assert!(read_all(&mut bytes.as_slice(), &inbox, &unread));
}

#[test]
fn requests_that_are_cancelled_before_they_are_read_are_passed_over() {
    let ((inbox, taken), unread) = (channel(), Unread::default());
    let cancels = [1, 7].map(|id| ToWorker::Cancel { id });
    let bytes = said((0..3).map(chat).chain(cancels));
    assert!(read_all(&mut bytes.as_slice(), &inbox, &unread));
    assert_eq!([unread.take().id, unread.take().id], [0, 2]);
    // Of the other one it is not known whether it is computed.
    let passed_on: Vec<Input> = taken.try_iter().collect();
    assert!(matches!(passed_on[..], [Input::Message(ToWorker::Cancel { id: 7 }, None)]));
}
