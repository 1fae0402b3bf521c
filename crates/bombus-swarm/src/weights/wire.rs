//! The messages of `/bombus/weights/1` and `/bombus/manage/1`: CBOR behind a length of four bytes, big-endian.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;

pub(super) use crate::wire::read_message as read;
use crate::wire::write_message;

/// Most bytes of a request.
pub(super) const REQUEST_MAX: usize = 64 << 10;
/// Most bytes of an answer: a model's description has up to 256 KiB.
pub(super) const ANSWER_MAX: usize = 320 << 10;

/// What a node asks another about weights; one request to a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WeightsRequest {
    /// Which weights a name stands for.
    Find { name: String },
    /// Which name stands for weights with this SHA-256.
    FindHash { sha256: String },
    /// Bytes of weights.
    Read { sha256: String, offset: u64, len: u64 },
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WeightsAnswer {
    /// The model's description, as JSON.
    Found { model: String },
    /// It does not have that, or not for this peer.
    NotFound {},
    /// It does not do that, and says why.
    Refused { reason: String },
    /// It sends as much as it may at a time.
    Busy { retry_ms: u64 },
    /// So many bytes follow, and then the end.
    Sending { len: u64 },
}

/// What a node asks another to do with its models; one request to a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ManageRequest {
    /// Fetch a model, from wherever that node takes models.
    Pull { name: String },
    /// Remove a model.
    Remove { name: String },
}

/// What the other answers: steps, and then one of the last two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ManageAnswer {
    /// How far it is.
    Step {
        status: String,
        #[serde(default)]
        sha256: Option<String>,
        #[serde(default)]
        total_bytes: Option<u64>,
        #[serde(default)]
        completed_bytes: Option<u64>,
    },
    /// It is still at it.
    Alive {},
    /// It is done.
    Done {},
    /// It was not done.
    Failed { kind: FailureKind, message: String },
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureKind {
    /// The peer may not do that there.
    Refused,
    /// There is no such model.
    NotFound,
    /// Too much is being done there.
    Busy,
    /// It went wrong.
    #[serde(other)]
    Failed,
}

/// Writes a message.
pub(super) async fn write<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    write_message(stream, message, ANSWER_MAX).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::de::DeserializeOwned;

    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn there_and_back<T: Serialize + DeserializeOwned>(message: &T) -> io::Result<T> {
        run(async {
            let mut bytes = Vec::new();
            write(&mut bytes, message).await?;
            read(&mut bytes.as_slice(), ANSWER_MAX).await
        })
    }

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let read = WeightsRequest::Read { sha256: "a".repeat(64), offset: 1 << 40, len: 7 };
        assert_eq!(there_and_back(&read).unwrap(), read);
        for answer in [
            WeightsAnswer::Found { model: "m".repeat(256 << 10) },
            WeightsAnswer::NotFound {},
            WeightsAnswer::Busy { retry_ms: 500 },
        ] {
            assert_eq!(there_and_back(&answer).unwrap(), answer);
        }
        let failed = ManageAnswer::Failed { kind: FailureKind::Refused, message: "no".to_owned() };
        assert_eq!(there_and_back(&failed).unwrap(), failed);
    }

    /// What is written is what the first version wrote, and it is read again.
    fn assert_recorded<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(recorded: &[(T, &str)]) {
        for (message, hex) in recorded {
            let mut bytes = Vec::new();
            run(write(&mut bytes, message)).unwrap();
            let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(written, *hex, "{message:?}");
            assert_eq!(&run(read::<T>(&mut bytes.as_slice(), ANSWER_MAX)).unwrap(), message);
        }
    }

    /// These bytes are what peers of the first version send and expect.
    #[test]
    fn frames_look_as_they_always_did() {
        let status = "s".to_owned();
        let step = ManageAnswer::Step { status, sha256: None, total_bytes: Some(9), completed_bytes: Some(3) };
        assert_recorded(&[
            (WeightsRequest::Find { name: "m".to_owned() }, "0000000ea16466696e64a1646e616d65616d"),
            (
                WeightsRequest::FindHash { sha256: "ab".to_owned() },
                "00000016a16966696e645f68617368a166736861323536626162",
            ),
            (
                WeightsRequest::Read { sha256: "ab".to_owned(), offset: 1 << 40, len: 7 },
                "00000026a16472656164a366736861323536626162666f66667365741b0000010000000000636c656e07",
            ),
        ]);
        assert_recorded(&[
            (WeightsAnswer::Found { model: "{}".to_owned() }, "00000011a165666f756e64a1656d6f64656c627b7d"),
            (WeightsAnswer::NotFound {}, "0000000ca1696e6f745f666f756e64a0"),
            (WeightsAnswer::Refused { reason: "no".to_owned() }, "00000014a16772656675736564a166726561736f6e626e6f"),
            (WeightsAnswer::Busy { retry_ms: 500 }, "00000013a16462757379a16872657472795f6d731901f4"),
            (WeightsAnswer::Sending { len: 7 }, "0000000fa16773656e64696e67a1636c656e07"),
        ]);
        assert_recorded(&[
            (ManageRequest::Pull { name: "m".to_owned() }, "0000000ea16470756c6ca1646e616d65616d"),
            (ManageRequest::Remove { name: "m".to_owned() }, "00000010a16672656d6f7665a1646e616d65616d"),
        ]);
        assert_recorded(&[
            (
                step,
                "00000036a16473746570a466737461747573617366736861323536f66b746f74616c5f6279746573096f636f6d706c657465\
                 645f627974657303",
            ),
            (ManageAnswer::Alive {}, "00000008a165616c697665a0"),
            (ManageAnswer::Done {}, "00000007a164646f6e65a0"),
            (
                ManageAnswer::Failed { kind: FailureKind::NotFound, message: "no".to_owned() },
                "00000023a1666661696c6564a2646b696e64696e6f745f666f756e64676d657373616765626e6f",
            ),
        ]);
    }

    #[test]
    fn what_later_versions_add_is_ignored_and_what_is_too_large_refused() {
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum Later {
            Find { name: &'static str, language: &'static str },
        }
        let mut bytes = Vec::new();
        run(write(&mut bytes, &Later::Find { name: "m", language: "en" })).unwrap();
        let found: WeightsRequest = run(read(&mut bytes.as_slice(), REQUEST_MAX)).unwrap();
        assert_eq!(found, WeightsRequest::Find { name: "m".to_owned() });
        let long = WeightsRequest::Find { name: "m".repeat(REQUEST_MAX) };
        let mut bytes = Vec::new();
        run(write(&mut bytes, &long)).unwrap();
        assert!(run(read::<WeightsRequest>(&mut bytes.as_slice(), REQUEST_MAX)).is_err());
        assert!(there_and_back(&WeightsAnswer::Found { model: "m".repeat(ANSWER_MAX) }).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
            frame.extend(bytes);
            drop(run(read::<WeightsRequest>(&mut frame.as_slice(), REQUEST_MAX)));
            drop(run(read::<ManageAnswer>(&mut frame.as_slice(), ANSWER_MAX)));
        }
    }
}
