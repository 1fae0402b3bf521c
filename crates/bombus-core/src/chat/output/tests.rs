//! Answers that break off at every event, and go on by their tokens or by their text.

use proptest::prelude::*;

use super::*;

/// What a client has of an answer, as whoever asks for it keeps it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Had {
    thinking: String,
    text: String,
    tokens: usize,
    held: Vec<u8>,
}

impl Had {
    fn take(&mut self, event: &ChatEvent) {
        let delta = match event {
            ChatEvent::Thinking(delta) => {
                self.thinking.push_str(&delta.text);
                delta
            }
            ChatEvent::Delta(delta) => {
                self.text.push_str(&delta.text);
                delta
            }
            other => unreachable!("an output makes no {other:?}"),
        };
        let trace = delta.trace.as_ref().expect("the run is traced");
        self.tokens += trace.tokens.len();
        self.held.clone_from(&trace.held);
    }

    fn resume(&self, tokens: &[&[u8]]) -> Resume {
        Resume {
            tokens: ids(&tokens[..self.tokens]),
            thinking: self.thinking.clone(),
            text: self.text.clone(),
            held: self.held.clone(),
            ..Resume::default()
        }
    }
}

/// Tokens are numbers of places here.
fn ids(tokens: &[&[u8]]) -> Vec<u32> {
    (0..tokens.len()).map(|index| u32::try_from(index).unwrap()).collect()
}

/// Gives a run its further tokens and returns its events, each as it leaves.
fn write(output: &mut Output, tokens: &[&[u8]], from: usize) -> Vec<ChatEvent> {
    let mut events = Vec::new();
    for (id, bytes) in ids(tokens).into_iter().zip(tokens).skip(from) {
        if output.push(Some(id), bytes, None, &mut events) {
            return events;
        }
    }
    output.finish(&mut events);
    events
}

fn told(events: &[ChatEvent]) -> Had {
    let mut had = Had::default();
    events.iter().for_each(|event| had.take(event));
    had
}

fn outcome(had: &Had) -> (&str, &str) {
    (&had.thinking, &had.text)
}

/// Breaks an answer off behind each of its events, goes on in both ways, and expects the client to have the same at the end. Returns how
/// often the tokens could be followed, and how often there was something to follow.
fn break_everywhere(fresh: &Output, tokens: &[&[u8]]) -> (usize, usize) {
    let events = write(&mut fresh.clone(), tokens, 0);
    let whole = told(&events);
    let (mut followed, mut tried) = (0, 0);
    for cut in 0..events.len() {
        let mut had = told(&events[..cut]);
        let resume = had.resume(tokens);
        let by_text = fresh.follow_text(&resume);
        let mut text_had = had.clone();
        go_on(by_text.output, by_text.events, by_text.stopped, tokens, &mut text_had);
        assert_eq!(outcome(&text_had), outcome(&whole), "by text from {resume:?}");
        tried += 1;
        let bytes_of = |id: u32, _: bool| tokens[id as usize].to_vec();
        if let Some(by_tokens) = fresh.follow_tokens(&resume, &resume.tokens, bytes_of) {
            followed += 1;
            go_on(by_tokens.output, by_tokens.events, by_tokens.stopped, tokens, &mut had);
            assert_eq!(outcome(&had), outcome(&whole), "by tokens from {resume:?}");
        }
    }
    (followed, tried)
}

fn go_on(mut output: Output, mut events: Vec<ChatEvent>, stopped: bool, tokens: &[&[u8]], had: &mut Had) {
    output.tell_tokens([], &mut events);
    if !stopped {
        events.extend(write(&mut output, tokens, had.tokens));
    }
    events.iter().for_each(|event| had.take(event));
}

fn thinks(is_opened: bool) -> Output {
    Output::new(Vec::new(), Some(ThinkFilter::new(is_opened)), true)
}

fn stops(stop: &str) -> Output {
    Output::new(vec![stop.to_owned()], None, true)
}

#[test]
fn characters_that_span_tokens_and_the_seam_are_whole() {
    let tokens: [&[u8]; 6] = [b"a", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x90\x9d!"];
    let output = Output::new(Vec::new(), None, true);
    assert_eq!(outcome(&told(&write(&mut output.clone(), &tokens, 0))), ("", "a\u{20ac}\u{1f41d}!"));
    assert_eq!(break_everywhere(&output, &tokens), (3, 3));
}

#[test]
fn what_an_event_tells_is_enough_to_go_on() {
    let events = write(&mut stops("END"), &[b"x", b"\xe2\x82", b"\xac E", b"N", b"X"], 0);
    let traces: Vec<(&str, Vec<u32>, &[u8])> = events
        .iter()
        .map(|event| match event {
            ChatEvent::Delta(delta) => {
                let trace = delta.trace.as_ref().unwrap();
                (delta.text.as_str(), trace.tokens.clone(), trace.held.as_slice())
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(traces, [("x", vec![0], &b""[..]), ("\u{20ac} ", vec![1, 2], b"E"), ("ENX", vec![3, 4], b"")]);
}

#[test]
fn a_stop_text_across_the_seam_ends_the_answer() {
    let output = stops("END");
    let resume = Resume { text: "x ".into(), held: b"EN".to_vec(), ..Resume::default() };
    let mut followed = output.follow_text(&resume);
    assert_eq!(followed.parts, [Part { kind: PartKind::Answer, bytes: b"x EN".to_vec() }]);
    assert!(followed.output.push(None, b"D of all", None, &mut followed.events));
    assert_eq!(followed.events, []);
    // What only looked like one is handed on.
    let mut followed = output.follow_text(&resume);
    assert!(!followed.output.push(None, b"X", None, &mut followed.events));
    assert_eq!(told(&followed.events).text, "ENX");
    assert_eq!(break_everywhere(&output, &[b"a", b" E", b"N", b"DE", b"END", b"b"]), (2, 2));
}

#[test]
fn a_stop_text_in_what_was_handed_on_ends_the_answer_at_once() {
    let followed = stops("b").follow_text(&Resume { text: "abc".into(), ..Resume::default() });
    assert!(followed.stopped && followed.events.is_empty());
}

#[test]
fn thoughts_break_off_anywhere() {
    let unopened: [&[u8]; 9] = [b"<think>", b"\n", b"Let me", b" <", b" see.", b"\n", b"</think>", b"\n\n", b"42"];
    assert_eq!(outcome(&told(&write(&mut thinks(false), &unopened, 0))), ("Let me < see.", "42"));
    assert_eq!(break_everywhere(&thinks(false), &unopened), (3, 3));
    let opened: [&[u8]; 5] = [b"\nHm", b".</th", b"ink>\n", b"\nYes", b"!"];
    assert_eq!(break_everywhere(&thinks(true), &opened), (4, 4));
    let without: [&[u8]; 3] = [b"<think>\n\n</think>\n\n", b"Yes", b"!"];
    assert_eq!(break_everywhere(&thinks(false), &without), (2, 2));
}

#[test]
fn a_thought_and_the_answer_that_come_at_once_are_told_apart_at_the_seam() {
    // All of it leaves in one step, as two events of which the second may be lost.
    let tokens: [&[u8]; 2] = [b"<think>Hm.</think>\n\nYes", b"!"];
    let events = write(&mut thinks(false), &tokens, 0);
    let ChatEvent::Thinking(thought) = &events[0] else { panic!("{events:?}") };
    assert_eq!(thought.trace, Some(Trace { tokens: vec![0], held: b"</think>\n\nYes".to_vec() }));
    assert_eq!(break_everywhere(&thinks(false), &tokens), (3, 3));
}

#[test]
fn the_model_reads_its_thoughts_in_its_own_marks() {
    let written = |output: &Output, resume: &Resume| {
        let parts = output.follow_text(resume).parts;
        parts.iter().map(|part| String::from_utf8_lossy(&part.bytes).into_owned()).collect::<String>()
    };
    let resume = Resume { thinking: "Hm.".into(), text: "Yes".into(), held: b"\xe2".to_vec(), ..Resume::default() };
    assert_eq!(written(&thinks(false), &resume), "<think>\nHm.\n</think>\n\nYes\u{fffd}");
    assert_eq!(written(&thinks(true), &resume), "Hm.\n</think>\n\nYes\u{fffd}");
    assert_eq!(written(&stops("END"), &resume), "Yes\u{fffd}");
    let thinking = Resume { text: String::new(), held: b" </th".to_vec(), ..resume.clone() };
    assert_eq!(written(&thinks(true), &thinking), "Hm. </th");
    assert_eq!(written(&stops("END"), &thinking), "");
    let answers = Resume { thinking: String::new(), held: Vec::new(), ..resume };
    assert_eq!(written(&thinks(false), &answers), "Yes");
    assert_eq!(written(&thinks(true), &answers), "\n</think>\n\nYes");
    let nothing = Resume { held: b"\n<think>".to_vec(), ..Resume::default() };
    assert_eq!(
        (written(&thinks(false), &nothing), written(&thinks(true), &nothing)),
        ("\n<think>".into(), String::new())
    );
}

#[test]
fn an_answer_that_looks_like_a_mark_and_then_like_a_stop_text_is_not_doubled() {
    let output = Output::new(vec!["END".to_owned()], Some(ThinkFilter::new(false)), true);
    assert_eq!(break_everywhere(&output, &[b"<", b"E", b"E"]), (2, 2));
}

#[test]
fn tokens_that_are_not_those_of_the_text_are_not_followed() {
    let output = Output::new(Vec::new(), None, true);
    let tokens: [&[u8]; 2] = [b"on", b"e"];
    let follow = |text: &str| {
        let resume = Resume { text: text.into(), ..Resume::default() };
        output.follow_tokens(&resume, &[0, 1], |id, _| tokens[id as usize].to_vec())
    };
    assert!(follow("two").is_none() && follow("one two").is_none());
    // More than was handed on is handed on now.
    let more = follow("o").unwrap();
    assert_eq!(more.events, [ChatEvent::Delta(Delta::text("n")), ChatEvent::Delta(Delta::text("e"))]);
}

fn piece() -> impl Strategy<Value = &'static [u8]> {
    let pieces: [&[u8]; 17] = [
        b"a",
        b"b ",
        b" ",
        b"\n",
        b"E",
        b"N",
        b"D",
        b"END",
        b"<",
        b"<think>",
        b"</think>",
        b"</th",
        b"ink>",
        b"\xe2\x82",
        b"\xac",
        b"\xac.",
        b"x</think>\n\ny",
    ];
    prop::sample::select(pieces.to_vec())
}

proptest! {
    #[test]
    fn no_cut_loses_or_doubles_a_character(tokens in prop::collection::vec(piece(), 0..14), opened in any::<bool>(), thinks in any::<bool>()) {
        let think = thinks.then(|| ThinkFilter::new(opened));
        break_everywhere(&Output::new(vec!["END".to_owned(), "bE".to_owned()], think, true), &tokens);
    }
}
