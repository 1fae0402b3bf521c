use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use bombus_core::chat::{ChatEvent, ChatRequest, Delta, Message, Prompt, Role, Trace};
use bombus_core::model::{ModelDetails, ModelInfo, ModelName, RunningModel};
use proptest::prelude::*;

use super::*;

fn messages_of(bytes: &[u8], max: usize) -> Messages {
    let mut messages = Messages::up_to(max);
    messages.bytes.extend_from_slice(bytes);
    messages
}

fn written(message: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    push(&mut out, message).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// As the first version wrote them: these bytes are what peers of that version send and expect.
const RECORDED: &[(&str, &str)] = &[
    ("ask", "00000029a561760162696463616263646b696e646463686174656d6f64656c6466616b656562797465731907d0"),
    ("accepted", "0000000ea1686163636570746564a1617601"),
    (
        "declined",
        "00000058a1686465636c696e6564a366726561736f6e6466756c6c676d657373616765616d646c6f6164a66772756e6e696e67016777\
         616974696e6702646f7572730365736c6f74730868647261696e696e67f466706175736564f5",
    ),
    ("alive", "00000008a165616c697665a0"),
    ("waiting", "0000000aa16777616974696e67a0"),
    ("progress", "0000000ba16870726f6772657373a0"),
    ("delta", "0000002ba16564656c7461a26474657874626869657472616365a266746f6b656e73820719012c6468656c648118e2"),
    ("vector", "00000011a166766563746f72480000003f000080bf"),
    ("embedded", "0000001aa168656d626564646564a16d70726f6d70745f746f6b656e7309"),
    (
        "telling",
        "0000003ba2617601646c6f6164a66772756e6e696e67016777616974696e6702646f7572730365736c6f74730868647261696e696e67\
         f466706175736564f5",
    ),
];

#[test]
fn frames_look_as_they_always_did() {
    let ask = Ask { v: 1, id: "abc".into(), kind: "chat".into(), model: "fake".into(), bytes: 2_000 };
    let load = Load { running: 1, waiting: 2, ours: 3, slots: Some(8), draining: false, paused: true };
    let declined = Declined { reason: Reason::Full, message: "m".into(), load };
    let delta = Delta { trace: Some(Trace { tokens: vec![7, 300], held: vec![0xe2] }), ..Delta::text("hi") };
    let all = [
        ("ask", written(&ask)),
        ("accepted", written(&Reply::Accepted(Accepted { v: 1 }))),
        ("declined", written(&Reply::Declined(declined))),
        ("alive", written(&Reply::Alive {})),
        ("waiting", written(&ChatEvent::Waiting {})),
        ("progress", written(&Reply::Progress {})),
        ("delta", written(&ChatEvent::Delta(delta))),
        ("vector", written(&Reply::Vector(Vector(vec![0.5, -1.0])))),
        ("embedded", written(&Reply::Embedded(embedded()))),
        ("telling", written(&Telling { v: 1, models: None, by_text: &[], load })),
    ];
    for (name, bytes) in &all {
        let recorded = RECORDED.iter().find(|(recorded, _)| recorded == name).map_or("", |(_, hex)| hex);
        assert_eq!(hex(bytes), recorded, "{name}");
    }
}

#[test]
fn recorded_frames_are_read() {
    let read = |name: &str| unhex(RECORDED.iter().find(|(recorded, _)| *recorded == name).unwrap().1);
    let heard = |name: &str| messages_of(&read(name), REPLY_BYTES_MAX).next::<Heard>().unwrap().unwrap();
    assert_eq!(heard("accepted"), Heard::Accepted(Accepted { v: 1 }));
    assert_eq!(heard("alive"), Heard::Alive);
    assert_eq!(heard("waiting"), Heard::Event(ChatEvent::Waiting {}));
    assert_eq!(heard("progress"), Heard::Progress);
    assert_eq!(heard("embedded"), Heard::Embedded(embedded()));
    assert_eq!(heard("vector"), Heard::Vector(Vector(vec![0.5, -1.0])));
    assert!(matches!(heard("declined"), Heard::Declined(Declined { reason: Reason::Full, load, .. }) if load.paused));
    let Heard::Event(ChatEvent::Delta(delta)) = heard("delta") else { panic!("no delta") };
    assert_eq!((delta.text.as_str(), delta.trace.unwrap().tokens), ("hi", vec![7, 300]));
    let mut told = messages_of(&read("telling"), OFFER_BYTES_MAX).next::<Told>().unwrap().unwrap();
    assert_eq!((told.load.slots, told.models()), (Some(8), None));
}

fn embedded() -> Embedded {
    Embedded { prompt_tokens: 9, load_ms: None, backend: String::new(), model: String::new() }
}

#[test]
fn what_is_told_about_models_comes_out_as_it_went_in() {
    let heard = |reply: &Reply| messages_of(&written(reply), REPLY_BYTES_MAX).next::<Heard>().unwrap().unwrap();
    let mut details = ModelDetails { template: "{{ .Prompt }}".into(), ..ModelDetails::default() };
    details.metadata.insert("llama.embedding_length".into(), 576.into());
    details.metadata.insert("general.languages".into(), vec!["en"].into());
    details.messages.push(Message::text(Role::User, "Hi"));
    let details = Box::new(details);
    assert_eq!(heard(&Reply::Details(details.clone())), Heard::Details(details.clone()), "as all versions say it");
    let details = Box::new(ModelDetails { renderer: "qwen3-coder".into(), requires: "0.14.0".into(), ..*details });
    assert_eq!(heard(&Reply::Details(details.clone())), Heard::Details(details));
    let name = ModelName::parse("m").unwrap();
    let info = ModelInfo { family: Some("f".repeat(5_000)), ..ModelInfo::named(name.clone()) };
    let model =
        RunningModel { info, memory_bytes: 5, gpu_bytes: 3, context_tokens: 4_096, expires_unix_s: Some(1 << 40) };
    let Heard::Loaded(loaded) = heard(&Reply::Loaded(vec![model.clone()])) else { panic!("no list") };
    assert_eq!(loaded[0].info.family.as_ref().unwrap().len(), NAME_BYTES_MAX, "what is too long is cut");
    assert_eq!(loaded, [RunningModel { info: loaded[0].info.clone(), ..model }]);
    let by_text = [name.clone()];
    let bytes = written(&Telling { v: 1, models: Some(&[]), by_text: &by_text, load: Load::default() });
    let mut told = messages_of(&bytes, OFFER_BYTES_MAX).next::<Told>().unwrap().unwrap();
    assert_eq!((told.by_text(), told.models()), ([name].into(), Some(vec![])));
    let made = Embedded { load_ms: Some(2.5), backend: "b".into(), model: "m".into(), ..embedded() };
    assert_eq!(heard(&Reply::Embedded(made.clone())), Heard::Embedded(made));
}

#[test]
fn a_request_comes_out_as_it_went_in() {
    let text = "ü".repeat(FRAME_BYTES_MAX);
    let request = ChatRequest::new("fake", Prompt::Chat(vec![Message::text(Role::User, text)]));
    let bytes = written(&request);
    assert_eq!(bytes.len().div_ceil(FRAME_BYTES_MAX + 4), 3, "it takes three frames");
    let mut messages = messages_of(&bytes, REQUEST_BYTES_MAX);
    assert_eq!(messages.next::<ChatRequest>().unwrap(), Some(request));
    assert!(messages.next::<ChatRequest>().unwrap().is_none());
    let error = messages_of(&bytes, FRAME_BYTES_MAX).next::<ChatRequest>().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "it is more than may come");
}

#[test]
fn models_that_are_none_and_what_is_too_long_stay_out() {
    let mut long = ModelInfo::named(ModelName::parse("long").unwrap());
    long.family = Some("f".repeat(5_000));
    let many = vec![long; MODELS_MAX + 10];
    let bytes = written(&Telling { v: 1, models: Some(&many[..100]), by_text: &[], load: Load::default() });
    let models = messages_of(&bytes, OFFER_BYTES_MAX).next::<Told>().unwrap().unwrap().models().unwrap();
    assert_eq!((models.len(), models[0].family.as_ref().unwrap().len()), (100, NAME_BYTES_MAX));
}

#[test]
fn nested_bombs_are_refused() {
    let mut bytes = vec![0x81; 100_000];
    bytes.push(0);
    let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
    framed.append(&mut bytes);
    assert!(messages_of(&framed, REQUEST_BYTES_MAX).next::<ChatRequest>().is_err());
    assert!(messages_of(&framed, REPLY_BYTES_MAX).next::<Heard>().is_err());
}

proptest! {
    #[test]
    fn garbage_is_refused_or_passed_over(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut framed = (bytes.len() as u32).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        drop(messages_of(&framed, REPLY_BYTES_MAX).next::<Heard>());
        drop(messages_of(&framed, OFFER_BYTES_MAX).next::<Told>());
        drop(messages_of(&framed, ASK_BYTES_MAX).next::<Ask>());
        drop(messages_of(&bytes, REPLY_BYTES_MAX).next::<Heard>());
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut(
        texts in prop::collection::vec(".{0,30}", 0..5),
        pieces in prop::collection::vec(1..40_usize, 1..20),
    ) {
        let mut bytes = Vec::new();
        for text in &texts {
            push(&mut bytes, &ChatEvent::Delta(Delta::text(text.clone()))).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let heard: Vec<String> = runtime.block_on(async {
            let (mut messages, mut heard, mut rest) = (Messages::up_to(REPLY_BYTES_MAX), Vec::new(), bytes.as_slice());
            for piece in pieces.iter().cycle() {
                while let Some(Heard::Event(ChatEvent::Delta(delta))) = messages.next().unwrap() {
                    heard.push(delta.text);
                }
                if rest.is_empty() {
                    break;
                }
                let (mut now, later) = rest.split_at(rest.len().min(*piece));
                poll_fn(|cx| messages.poll_fill(Pin::new(&mut now), cx)).await.unwrap();
                rest = later;
            }
            heard
        });
        prop_assert_eq!(heard, texts);
    }
}
