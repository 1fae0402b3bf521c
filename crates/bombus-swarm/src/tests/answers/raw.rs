//! Peers that speak the protocols by hand: as later versions may, as broken ones do.

use std::time::Duration;

use bombus_core::chat::ChatEvent;
use bombus_infer::BackendError;
use bombus_net::NetStream;
use ciborium::{Value, cbor};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::harness::Mesh;
use super::{Answering, LIMIT, ask, collect, fake, text_of};
use crate::route::{OFFERS_PROTOCOL, REQUEST_BYTES_MAX, RUN_PROTOCOL, RunConfig};

fn framed(message: &Value) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    ciborium::into_writer(message, &mut bytes).unwrap();
    let length = u32::try_from(bytes.len() - 4).unwrap();
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    bytes
}

async fn say(stream: &mut NetStream, message: Value) {
    stream.write_all(&framed(&message)).await.unwrap();
    stream.flush().await.unwrap();
}

async fn hear(stream: &mut NetStream) -> Value {
    let heard = async {
        let length = stream.read_u32().await.unwrap();
        let mut bytes = vec![0; length as usize];
        stream.read_exact(&mut bytes).await.unwrap();
        ciborium::from_reader(bytes.as_slice()).unwrap()
    };
    timeout(LIMIT, heard).await.expect("it says something")
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let fields = value.as_map().expect("a map");
    &fields.iter().find(|(key, _)| key.as_text() == Some(name)).unwrap_or_else(|| panic!("{name} in {value:?}")).1
}

/// A node with a peer that is spoken by hand and offers the model `fake`.
struct ByHand {
    asking: Answering,
    mesh: Mesh,
    _offers: NetStream,
}

impl ByHand {
    async fn start(config: RunConfig) -> Self {
        let asking = Answering::start(1, &[], Vec::new(), config).await;
        let mesh = Mesh::start(2, &[asking.mesh()]).await;
        let connected = async {
            while mesh.net.open_stream(&asking.id(), OFFERS_PROTOCOL).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, connected).await.expect("they meet");
        let mut offers = mesh.net.open_stream(&asking.id(), OFFERS_PROTOCOL).await.unwrap();
        let told = cbor!({
            "v" => 7,
            "weather" => "fine",
            "models" => [
                {"name" => "fake", "capabilities" => ["completion", "telepathy"], "sha256" => "no hash", "colour" => 3},
                {"name" => "../no/model"}
            ],
            "load" => {"running" => 1, "slots" => 4, "mood" => "good"}
        });
        say(&mut offers, told.unwrap()).await;
        Self { asking, mesh, _offers: offers }
    }

    /// Asks, and lets the peer treat the request by hand.
    async fn asked<T, F: Future<Output = T>>(
        &self,
        treat: impl FnOnce(NetStream) -> F,
    ) -> (Result<Vec<Result<ChatEvent, BackendError>>, BackendError>, T) {
        let id = self.mesh.net.node_id().clone();
        let peer = self.asking.peer(&id).await;
        let mut incoming = self.mesh.net.accept(RUN_PROTOCOL).unwrap();
        let answer = async {
            match peer.chat(ask("hello")).await {
                Ok(events) => Ok(collect(events).await),
                Err(error) => Err(error),
            }
        };
        let by_hand = async {
            let (_, mut stream) = incoming.next().await.unwrap();
            let announced = hear(&mut stream).await;
            assert_eq!(field(&announced, "kind").as_text(), Some("chat"));
            let request = hear(&mut stream).await;
            assert_eq!(field(&request, "model").as_text(), Some("fake"));
            treat(stream).await
        };
        timeout(LIMIT, futures::future::join(answer, by_hand)).await.expect("it ends")
    }
}

#[tokio::test]
async fn what_later_versions_say_is_passed_over() {
    let by_hand = ByHand::start(RunConfig::default()).await;
    let peer = by_hand.asking.peer(by_hand.mesh.net.node_id()).await;
    let models = peer.models().await.unwrap();
    assert_eq!(models.len(), 1);
    assert_eq!((models[0].sha256.as_ref(), models[0].capabilities.len()), (None, 1));
    let (answer, ()) = by_hand
        .asked(async |mut stream| {
            say(&mut stream, cbor!({"pondering" => {"about" => [1, 2]}}).unwrap()).await;
            say(&mut stream, cbor!({"accepted" => {"v" => 1, "lane" => "fast"}}).unwrap()).await;
            say(&mut stream, cbor!({"alive" => {}}).unwrap()).await;
            let by = cbor!({"answered_by" => {"node" => null, "backend" => "b", "model" => "m", "shoe" => 42}});
            say(&mut stream, by.unwrap()).await;
            say(&mut stream, cbor!({"smell" => "of bees"}).unwrap()).await;
            say(&mut stream, cbor!({"delta" => {"text" => "hi", "colour" => "red"}, "and" => 1}).unwrap()).await;
            let usage = cbor!({"prompt_tokens" => 1, "cached_tokens" => 0, "completion_tokens" => 1, "joules" => 3});
            let timings = cbor!({"load_ms" => 0.0, "queue_ms" => 0.0, "prompt_ms" => 1.0, "generate_ms" => 2.5});
            let done =
                cbor!({"done" => {"finish" => "stop", "usage" => usage.unwrap(), "timings" => timings.unwrap()}});
            say(&mut stream, done.unwrap()).await;
        })
        .await;
    let events: Vec<ChatEvent> = answer.unwrap().into_iter().map(Result::unwrap).collect();
    assert_eq!((text_of(&events).as_str(), events.len()), ("hi", 3));
    let ChatEvent::AnsweredBy(by) = &events[0] else { panic!("{events:?}") };
    assert_eq!(by.node.as_ref(), Some(by_hand.mesh.net.node_id()), "it is named by the connection, not by itself");
}

#[tokio::test]
async fn a_failure_before_the_acceptance_can_be_mended_elsewhere() {
    let by_hand = ByHand::start(RunConfig::default()).await;
    let (answer, ()) = by_hand.asked(async |stream| drop(stream)).await;
    assert!(matches!(answer.unwrap_err(), BackendError::Unavailable { .. }));
    let version = async |mut stream: NetStream| {
        say(&mut stream, cbor!({"accepted" => {"v" => 9}}).unwrap()).await;
        stream
    };
    let (answer, _stream) = by_hand.asked(version).await;
    assert!(matches!(answer.unwrap_err(), BackendError::Unavailable { reason } if reason.contains("version 9")));
    let later = async |mut stream: NetStream| {
        say(&mut stream, cbor!({"declined" => {"reason" => "sleepy", "message" => "it sleeps"}}).unwrap()).await;
        stream
    };
    let (answer, _stream) = by_hand.asked(later).await;
    assert!(matches!(answer.unwrap_err(), BackendError::Rejected { reason } if reason.contains("it sleeps")));
}

#[tokio::test]
async fn a_failure_after_the_acceptance_breaks_the_answer_off() {
    let by_hand = ByHand::start(RunConfig::default()).await;
    let accepted = || cbor!({"accepted" => {"v" => 1}}).unwrap();
    let endings: [(&str, Option<Vec<u8>>); 4] = [
        ("ended without", None),
        ("not understood", Some(framed(&cbor!([1, 2]).unwrap()))),
        ("not understood", Some(vec![0, 0, 0, 2, 0xff, 0xff])),
        ("a message of more than", Some(vec![0x7f, 0xff, 0xff, 0xff])),
    ];
    for (wanted, ending) in endings {
        let (answer, ()) = by_hand
            .asked(async |mut stream| {
                say(&mut stream, accepted()).await;
                say(&mut stream, cbor!({"delta" => {"text" => "half"}}).unwrap()).await;
                if let Some(bytes) = ending {
                    stream.write_all(&bytes).await.unwrap();
                    stream.flush().await.unwrap();
                    // It hangs up by itself.
                    let mut nothing = [0; 1];
                    assert!(matches!(stream.read(&mut nothing).await, Ok(0) | Err(_)));
                }
            })
            .await;
        let mut events = answer.unwrap();
        let Some(Err(BackendError::Interrupted { reason })) = events.pop() else { panic!("{events:?}") };
        assert!(reason.contains(wanted), "{reason}");
        assert_eq!(events.len(), 1, "what came before it stands");
    }
}

/// How long a peer may be silent in tests that wait for that: long enough that a busy machine does not look like silence.
const SILENCE_MAX: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_peer_that_does_not_say_whether_it_takes_a_request_is_left() {
    let by_hand = ByHand::start(RunConfig { accept_limit: SILENCE_MAX, ..RunConfig::default() }).await;
    let (answer, _stream) = by_hand.asked(async |stream| stream).await;
    assert!(matches!(answer.unwrap_err(), BackendError::Unavailable { reason } if reason.contains("fell silent")));
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_left() {
    let by_hand = ByHand::start(RunConfig { stall_limit: SILENCE_MAX, ..RunConfig::default() }).await;
    let (answer, ()) = by_hand
        .asked(async |mut stream| {
            say(&mut stream, cbor!({"accepted" => {"v" => 1}}).unwrap()).await;
            // Signs of life keep it for longer than the limit.
            for _ in 0..6 {
                tokio::time::sleep(SILENCE_MAX / 5).await;
                say(&mut stream, cbor!({"alive" => {}}).unwrap()).await;
            }
            say(&mut stream, cbor!({"delta" => {"text" => "late"}}).unwrap()).await;
            let mut nothing = [0; 1];
            assert!(matches!(stream.read(&mut nothing).await, Ok(0) | Err(_)));
        })
        .await;
    let events = answer.unwrap();
    assert!(matches!(&events[0], Ok(ChatEvent::Delta(delta)) if delta.text == "late"));
    assert!(matches!(&events[1], Err(BackendError::Interrupted { reason }) if reason.contains("fell silent")));
}

#[tokio::test]
async fn requests_that_are_none_are_declined() {
    let answering = Answering::start(1, &[], fake(), RunConfig::default()).await;
    let mesh = Mesh::start(2, &[answering.mesh()]).await;
    let asked = |v: u32, kind: &str, model: &str, bytes: usize| {
        framed(&cbor!({"v" => v, "kind" => kind, "model" => model, "bytes" => bytes}).unwrap())
    };
    let garbage = b"\x00\x00\x00\x03abc".to_vec();
    for (what, reason) in [
        (garbage.clone(), "malformed"),
        (asked(0, "chat", "fake", 5), "malformed"),
        (asked(1, "dance", "fake", 5), "malformed"),
        (asked(1, "chat", "a b", 5), "not_shared"),
        (asked(1, "chat", "fake", REQUEST_BYTES_MAX + 1), "too_large"),
        ([asked(1, "chat", "fake", 3), garbage.clone()].concat(), "malformed"),
        ([asked(1, "chat", "fake", 2), garbage.clone()].concat(), "malformed"),
        ([asked(1, "chat", "fake", 9_000), vec![0x00, 0x10, 0x00, 0x01]].concat(), "malformed"),
    ] {
        let opened = async {
            loop {
                match mesh.net.open_stream(&answering.id(), RUN_PROTOCOL).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let mut stream = timeout(LIMIT, opened).await.unwrap();
        stream.write_all(&what).await.unwrap();
        stream.flush().await.unwrap();
        let declined = hear(&mut stream).await;
        assert_eq!(field(field(&declined, "declined"), "reason").as_text(), Some(reason), "{what:?}");
    }
    assert_eq!(answering.route.state().borrow().running, 0);
}

#[tokio::test]
async fn a_request_of_a_later_version_gets_this_one() {
    let answering = Answering::start(1, &[], fake(), RunConfig::default()).await;
    let mesh = Mesh::start(2, &[answering.mesh()]).await;
    let request = cbor!({
        "model" => "fake",
        "prompt" => {"raw" => "hello"},
        "wishes" => [1, 2, 3]
    });
    let mut body = Vec::new();
    ciborium::into_writer(&request.unwrap(), &mut body).unwrap();
    let ask =
        cbor!({"v" => 99, "id" => "x", "kind" => "chat", "model" => "fake", "bytes" => body.len(), "hat" => "red"});
    let opened = async {
        loop {
            match mesh.net.open_stream(&answering.id(), RUN_PROTOCOL).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let mut stream = timeout(LIMIT, opened).await.unwrap();
    say(&mut stream, ask.unwrap()).await;
    // In two frames.
    let (first, second) = body.split_at(body.len() / 2);
    for (part, more) in [(first, 1_u32 << 31), (second, 0)] {
        stream.write_all(&(part.len() as u32 | more).to_be_bytes()).await.unwrap();
        stream.write_all(part).await.unwrap();
    }
    stream.flush().await.unwrap();
    assert_eq!(hear(&mut stream).await, cbor!({"accepted" => {"v" => 1}}).unwrap());
    assert_eq!(field(field(&hear(&mut stream).await, "answered_by"), "backend").as_text(), Some("fake"));
    assert_eq!(hear(&mut stream).await, cbor!({"delta" => {"text" => "hello"}}).unwrap());
    assert_eq!(field(field(&hear(&mut stream).await, "done"), "finish").as_text(), Some("stop"));
    let mut nothing = [0; 1];
    assert_eq!(stream.read(&mut nothing).await.unwrap(), 0, "it ends in order");
}
