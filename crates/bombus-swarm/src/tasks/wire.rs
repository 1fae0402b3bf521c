//! The messages of `/bombus/task/1`: CBOR in frames, as those of requests. Fields and kinds that are not known are passed over, so that
//! later versions can say more.

use bombus_core::identity::NodeId;
use bombus_core::tasks::TaskId;
use bombus_core::tasks::dispatch::{Decline, Outcome};
use serde::{Deserialize, Serialize};

/// Most bytes of what opens a stream: a document, whose entry has at most 64 KiB of text and JSON around it.
pub(super) const ASK_BYTES_MAX: usize = 512 * 1024;
/// Most bytes of any other message.
pub(super) const WORD_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of a piece of an answer in one message.
pub(super) const PIECE_BYTES_MAX: usize = 128 * 1024;
/// Most bytes of sentences that come from peers.
pub(super) const TEXT_BYTES_MAX: usize = 2 * 1024;

/// What opens a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Ask {
    /// The requester offers a grant.
    Offer(Offer),
    /// Somebody wants to read the answer as it is written.
    Follow {
        /// To which task.
        task: TaskId,
    },
    /// A member wants a task of this node cancelled.
    Cancel {
        /// Which task.
        task: TaskId,
    },
    /// Somebody asks around before it claims a task.
    Around {
        /// Which task.
        task: TaskId,
        /// Its requester.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requester: Option<NodeId>,
    },
}

/// A grant that is offered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// The task as it was submitted, in JSON as in the database.
    pub(super) task: String,
    /// The grant's epoch.
    pub(super) epoch: u64,
    /// The grant's hash.
    pub(super) grant: String,
    /// The generation of the databases in which the task stands, and in which its result is to be written.
    pub(super) generation: u64,
    /// Whether it may have been offered before.
    #[serde(default)]
    pub(super) resume: bool,
}

/// What a requester says after its offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Word {
    /// A renewal has come.
    Acknowledged {
        /// Which one.
        beat: u32,
    },
    /// The grant is over.
    Revoked,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

/// What is said by who was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Said {
    /// The grant is taken.
    Accepted {
        /// Whether the run has begun already.
        #[serde(default)]
        began: bool,
    },
    /// The grant is not taken.
    Declined {
        /// Why.
        reason: DeclineWord,
        /// Whether a run that was lost may have begun.
        #[serde(default)]
        began: bool,
    },
    /// The run has begun.
    Began,
    /// The lease is renewed.
    Renewed {
        /// Which renewal.
        beat: u32,
    },
    /// More of the answer.
    Piece {
        /// Whether it belongs to another attempt than what was said before.
        #[serde(default)]
        anew: bool,
        /// Under which grant it is written.
        #[serde(default)]
        epoch: u64,
        /// The text.
        text: String,
        /// How many tokens have been written in all.
        #[serde(default)]
        tokens: u64,
    },
    /// The result stands in the database.
    Completed,
    /// The run has failed, as the database says.
    Failed {
        /// Why.
        #[serde(default)]
        reason: String,
        /// Whether another try could succeed.
        #[serde(default)]
        retry: bool,
    },
    /// The grant is handed back.
    HandedBack,
    /// What is known of a task and its requester.
    Seen {
        /// Whether the requester is seen here, or this is it.
        requester: bool,
        /// Whether the task runs here, or is about to.
        running: bool,
    },
    /// What was asked for is done.
    Done,
    /// It is not: for example since the task is not known here.
    Refused,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

/// Why a grant is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum DeclineWord {
    Busy,
    Draining,
    NotAble,
    Over,
    Lost,
    /// Something that a later version says.
    #[serde(other)]
    Unknown,
}

impl Said {
    pub(super) fn declined(reason: Decline) -> Self {
        let (reason, began) = match reason {
            Decline::Busy => (DeclineWord::Busy, false),
            Decline::Draining => (DeclineWord::Draining, false),
            Decline::NotAble | Decline::Unreachable => (DeclineWord::NotAble, false),
            Decline::Over => (DeclineWord::Over, false),
            Decline::Lost { began } => (DeclineWord::Lost, began),
        };
        Self::Declined { reason, began }
    }

    pub(super) fn ended(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Completed => Self::Completed,
            Outcome::Failed { reason, retry } => Self::Failed { reason: short(reason.clone()), retry: *retry },
            Outcome::HandedBack => Self::HandedBack,
        }
    }

    /// Returns whether nothing follows.
    pub(super) fn is_last(&self) -> bool {
        matches!(self, Self::Declined { .. } | Self::Completed | Self::Failed { .. } | Self::HandedBack)
    }
}

impl DeclineWord {
    pub(super) fn decline(self, began: bool) -> Decline {
        match self {
            Self::Busy => Decline::Busy,
            Self::Draining => Decline::Draining,
            Self::NotAble | Self::Unknown => Decline::NotAble,
            Self::Over => Decline::Over,
            Self::Lost => Decline::Lost { began },
        }
    }
}

/// Cuts a sentence to what is sent and taken.
pub(super) fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back<T: Serialize + for<'de> Deserialize<'de>>(message: &impl Serialize) -> T {
        let mut bytes = Vec::new();
        ciborium::into_writer(message, &mut bytes).unwrap();
        ciborium::from_reader(bytes.as_slice()).unwrap()
    }

    #[test]
    fn what_is_said_arrives_as_it_was() {
        let piece = Said::Piece { anew: true, epoch: 3, text: "ä\0".to_owned(), tokens: u64::MAX };
        for said in [Said::Accepted { began: true }, Said::Began, Said::Renewed { beat: 7 }, Said::Completed, piece] {
            assert_eq!(there_and_back::<Said>(&said), said);
        }
        for reason in [Decline::Busy, Decline::Over, Decline::Lost { began: true }, Decline::Draining] {
            let Said::Declined { reason: word, began } = there_and_back(&Said::declined(reason)) else { panic!() };
            assert_eq!(word.decline(began), reason);
        }
        let offer = Offer { task: "{}".to_owned(), epoch: 2, grant: "zdpu".to_owned(), generation: 4, resume: true };
        assert_eq!(there_and_back::<Ask>(&Ask::Offer(offer.clone())), Ask::Offer(offer));
        assert_eq!(there_and_back::<Word>(&Word::Acknowledged { beat: 1 }), Word::Acknowledged { beat: 1 });
    }

    /// What is written is what the first version wrote, and it is read again.
    fn assert_recorded<T>(recorded: &[(T, &str)])
    where
        T: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
    {
        for (message, hex) in recorded {
            let mut bytes = Vec::new();
            crate::route::push(&mut bytes, message).unwrap();
            let written: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(written, *hex, "{message:?}");
            assert_eq!(&crate::fuzzing::read_all::<T>(&bytes, ASK_BYTES_MAX), std::slice::from_ref(message));
        }
    }

    /// These bytes are what peers of the first version send and expect.
    #[test]
    fn frames_look_as_they_always_did() {
        let task = || TaskId::parse("t1").unwrap();
        let offer = Offer { task: "{}".to_owned(), epoch: 2, grant: "zdpu".to_owned(), generation: 4, resume: true };
        assert_recorded(&[
            (
                Ask::Offer(offer),
                "0000003aa6646b696e64656f66666572647461736b627b7d6565706f636802656772616e74647a6470756a67656e65726174\
                 696f6e0466726573756d65f5",
            ),
            (Ask::Follow { task: task() }, "00000015a2646b696e6466666f6c6c6f77647461736b627431"),
            (Ask::Cancel { task: task() }, "00000015a2646b696e646663616e63656c647461736b627431"),
            (Ask::Around { task: task(), requester: None }, "00000015a2646b696e646661726f756e64647461736b627431"),
        ]);
        assert_recorded(&[
            (Word::Acknowledged { beat: 7 }, "00000019a2646b696e646c61636b6e6f776c6564676564646265617407"),
            (Word::Revoked, "0000000ea1646b696e64677265766f6b6564"),
        ]);
        assert_recorded(&[
            (Said::Accepted { began: true }, "00000016a2646b696e6468616363657074656465626567616ef5"),
            (
                Said::declined(Decline::Lost { began: true }),
                "00000022a3646b696e64686465636c696e656466726561736f6e646c6f737465626567616ef5",
            ),
            (Said::Began, "0000000ca1646b696e6465626567616e"),
            (Said::Renewed { beat: 7 }, "00000014a2646b696e646772656e65776564646265617407"),
            (
                Said::Piece { anew: true, epoch: 3, text: "hi".to_owned(), tokens: 300 },
                "0000002ba5646b696e6465706965636564616e6577f56565706f636803647465787462686966746f6b656e7319012c",
            ),
            (Said::Completed, "00000010a1646b696e6469636f6d706c65746564"),
            (
                Said::Failed { reason: "no".to_owned(), retry: true },
                "0000001ea3646b696e64666661696c656466726561736f6e626e6f657265747279f5",
            ),
            (Said::HandedBack, "00000012a1646b696e646b68616e6465645f6261636b"),
            (
                Said::Seen { requester: true, running: false },
                "0000001fa3646b696e64647365656e69726571756573746572f56772756e6e696e67f4",
            ),
            (Said::Done, "0000000ba1646b696e6464646f6e65"),
            (Said::Refused, "0000000ea1646b696e646772656675736564"),
        ]);
    }

    #[test]
    fn what_a_later_version_says_is_passed_over() {
        let later = serde_json::json!({ "kind": "sung", "melody": [1, 2], "words": { "la": true } });
        assert_eq!(there_and_back::<Said>(&later), Said::Unknown);
        assert_eq!(there_and_back::<Word>(&later), Word::Unknown);
        let more = serde_json::json!({ "kind": "accepted", "began": false, "mood": "good" });
        assert_eq!(there_and_back::<Said>(&more), Said::Accepted { began: false });
    }
}
