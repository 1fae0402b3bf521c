//! Documents of tasks and results, with what they say sealed.
//!
//! The encrypted text stands where the prompt or the response would, and the header in `sealed`. So a large one goes into blocks like any other.
//! What says where the task stands, and what workers have to know before they may read it, stays plain: the model, options, times, sizes.

use bombus_core::chat::Message;
use bombus_core::identity::NodeId;
use bombus_core::tasks::{ResultDocument, TaskDocument, WholeAnswer, WholeRequest};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{OpenError, PublicSealKey, Purpose, Role, SealError, SealHeader, SealKey, Sealed, open, seal};

/// What of a task is sealed.
#[derive(Debug, Serialize, Deserialize)]
struct SecretPrompt {
    prompt: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Message>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    map: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request: Option<Box<WholeRequest>>,
    /// The key that the answer is sealed to: the requester may be away when it is there.
    reply_to: String,
}

/// What of a result is sealed.
#[derive(Debug, Serialize, Deserialize)]
struct SecretAnswer {
    response: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    embedding: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Box<WholeAnswer>>,
}

/// A task that was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenedTask {
    /// The task, with what it asks.
    pub task: TaskDocument,
    /// The key that the answer is to be sealed to; none where the task was not sealed.
    pub reply_to: Option<PublicSealKey>,
}

/// Seals what a task of the node `requester` asks: prompt, conversation, instructions and template. The answer will be sealed to `reply_to`, the
/// requester's own key.
///
/// # Errors
///
/// As [`seal`].
pub fn seal_task(
    task: &TaskDocument,
    requester: &NodeId,
    reply_to: PublicSealKey,
    to: &[(NodeId, PublicSealKey)],
) -> Result<TaskDocument, SealError> {
    let secret = SecretPrompt {
        prompt: task.prompt.clone(),
        messages: task.messages.clone(),
        system: task.system.clone(),
        map: task.map.clone(),
        request: task.request.clone(),
        reply_to: reply_to.to_string(),
    };
    let purpose = Purpose { task: task.id.as_str(), role: Role::Prompt, from: requester };
    let (sealed, prompt) = seal_json(&purpose, &secret, to)?;
    Ok(TaskDocument {
        prompt,
        messages: None,
        system: None,
        map: None,
        request: None,
        encrypted: Some(true),
        sealed: Some(sealed),
        ..task.clone()
    })
}

/// Opens what a task asks that is sealed to the node `own`. One that is not sealed is returned as it is.
///
/// # Errors
///
/// As [`open`], and when the task names no requester.
pub fn open_task(task: &TaskDocument, own: &NodeId, key: &SealKey) -> Result<OpenedTask, OpenError> {
    let Some(header) = &task.sealed else { return Ok(OpenedTask { task: task.clone(), reply_to: None }) };
    let requester = NodeId::parse(&task.requester_peer_id).map_err(|_| OpenError::Form("it names no requester"))?;
    let purpose = Purpose { task: task.id.as_str(), role: Role::Prompt, from: &requester };
    let secret: SecretPrompt = open_json(&purpose, header, &task.prompt, own, key)?;
    let reply_to = secret.reply_to.parse().map_err(|_| OpenError::Form("the key for the answer is none"))?;
    let SecretPrompt { prompt, messages, system, map, request, .. } = secret;
    let task = TaskDocument { prompt, messages, system, map, request, sealed: None, ..task.clone() };
    Ok(OpenedTask { task, reply_to: Some(reply_to) })
}

/// Seals the answer of the node `worker` to the requester.
///
/// # Errors
///
/// As [`seal`].
pub fn seal_result(
    result: &ResultDocument,
    worker: &NodeId,
    to: &[(NodeId, PublicSealKey)],
) -> Result<ResultDocument, SealError> {
    let ResultDocument { response, embedding, answer, .. } = result.clone();
    let secret = SecretAnswer { response, embedding, answer };
    let purpose = Purpose { task: result.task_id.as_str(), role: Role::Result, from: worker };
    let (sealed, response) = seal_json(&purpose, &secret, to)?;
    Ok(ResultDocument { response, embedding: None, answer: None, sealed: Some(sealed), ..result.clone() })
}

/// Opens an answer that is sealed to the node `own`. One that is not sealed is returned as it is.
///
/// # Errors
///
/// As [`open`], and when the result names no worker.
pub fn open_result(result: &ResultDocument, own: &NodeId, key: &SealKey) -> Result<ResultDocument, OpenError> {
    let Some(header) = &result.sealed else { return Ok(result.clone()) };
    let worker = NodeId::parse(&result.worker_peer_id).map_err(|_| OpenError::Form("it names no worker"))?;
    let purpose = Purpose { task: result.task_id.as_str(), role: Role::Result, from: &worker };
    let SecretAnswer { response, embedding, answer } = open_json(&purpose, header, &result.response, own, key)?;
    Ok(ResultDocument { response, embedding, answer, sealed: None, ..result.clone() })
}

/// Returns the header as JSON, and the text.
fn seal_json(
    purpose: &Purpose<'_>,
    secret: &impl Serialize,
    to: &[(NodeId, PublicSealKey)],
) -> Result<(serde_json::Value, String), SealError> {
    let plain = serde_json::to_vec(secret).map(Zeroizing::new).map_err(|_| SealError::Form)?;
    let Sealed { header, text } = seal(purpose, &plain, to)?;
    Ok((serde_json::to_value(header).map_err(|_| SealError::Form)?, text))
}

fn open_json<T: for<'de> Deserialize<'de>>(
    purpose: &Purpose<'_>,
    header: &serde_json::Value,
    text: &str,
    own: &NodeId,
    key: &SealKey,
) -> Result<T, OpenError> {
    let header = SealHeader::deserialize(header).map_err(|_| OpenError::Form("its header is none"))?;
    let plain = open(purpose, &header, text, own, key)?;
    serde_json::from_slice(&plain).map_err(|_| OpenError::Form("what is in it is of no known form"))
}

#[cfg(test)]
mod tests {
    use bombus_core::chat::Role as Speaker;
    use bombus_core::identity::NodeKey;
    use bombus_core::tasks::TaskId;

    use super::*;

    fn node(number: u8) -> NodeId {
        NodeKey::from_secret(&[number; 32]).node_id()
    }

    fn key(number: u8) -> SealKey {
        SealKey::from_secret(&[number; 32])
    }

    fn to(numbers: &[u8]) -> Vec<(NodeId, PublicSealKey)> {
        numbers.iter().map(|number| (node(*number), key(*number).public())).collect()
    }

    fn task() -> TaskDocument {
        TaskDocument {
            prompt: "the secret prompt".to_owned(),
            system: Some("a secret system".to_owned()),
            messages: Some(vec![Message::text(Speaker::User, "a secret message")]),
            map: Some("a secret template {text}".to_owned()),
            model: "smollm".to_owned(),
            ..TaskDocument::new(TaskId::parse("t").unwrap(), node(1).as_str(), 7)
        }
    }

    fn result() -> ResultDocument {
        ResultDocument {
            response: "the secret answer".to_owned(),
            embedding: Some(vec![0.25, -1.5e-9]),
            eval_count: Some(3),
            ..ResultDocument::new(TaskId::parse("t").unwrap(), node(2).as_str(), 9)
        }
    }

    #[test]
    fn a_sealed_task_shows_nothing_of_what_it_asks_and_opens_for_those_it_names() {
        let sealed = seal_task(&task(), &node(1), key(1).public(), &to(&[1, 2])).unwrap();
        let written = serde_json::to_string(&sealed).unwrap();
        assert!(!written.contains("secret") && written.contains("smollm"), "{written}");
        assert_eq!((sealed.encrypted, sealed.sealed_to()), (Some(true), Some(vec![node(1), node(2)])));
        let read = TaskDocument::read(serde_json::from_str(&written).unwrap()).unwrap();
        for number in [1, 2] {
            let opened = open_task(&read, &node(number), &key(number)).unwrap();
            assert_eq!(opened.task, TaskDocument { encrypted: Some(true), ..task() });
            assert_eq!(opened.reply_to, Some(key(1).public()));
        }
        assert_eq!(open_task(&read, &node(3), &key(3)), Err(OpenError::NotForUs));
    }

    #[test]
    fn nobody_has_a_worker_read_another_one_s_task_for_him() {
        let sealed = seal_task(&task(), &node(1), key(1).public(), &to(&[2])).unwrap();
        let copied = TaskDocument { requester_peer_id: node(3).to_string(), ..sealed.clone() };
        assert_eq!(open_task(&copied, &node(2), &key(2)), Err(OpenError::Refused));
        let renamed = TaskDocument { id: TaskId::parse("t2").unwrap(), ..sealed };
        assert_eq!(open_task(&renamed, &node(2), &key(2)), Err(OpenError::Refused));
    }

    #[test]
    fn a_sealed_answer_opens_for_the_requester_and_as_that_of_its_worker_only() {
        let sealed = seal_result(&result(), &node(2), &to(&[1])).unwrap();
        let written = serde_json::to_string(&sealed).unwrap();
        assert!(!written.contains("secret") && !written.contains("embedding") && written.contains("evalCount"));
        let read = ResultDocument::read(serde_json::from_str(&written).unwrap()).unwrap();
        assert_eq!(open_result(&read, &node(1), &key(1)), Ok(result()));
        assert_eq!(open_result(&read, &node(2), &key(2)), Err(OpenError::NotForUs));
        let copied = ResultDocument { worker_peer_id: node(3).to_string(), ..read };
        assert_eq!(open_result(&copied, &node(1), &key(1)), Err(OpenError::Refused));
    }

    #[test]
    fn what_is_not_sealed_is_as_it_is_and_a_header_that_is_none_is_told() {
        assert_eq!(open_task(&task(), &node(3), &key(3)), Ok(OpenedTask { task: task(), reply_to: None }));
        assert_eq!(open_result(&result(), &node(3), &key(3)), Ok(result()));
        let broken = TaskDocument { sealed: Some(serde_json::json!([])), ..task() };
        assert!(matches!(open_task(&broken, &node(1), &key(1)), Err(OpenError::Form(_))));
    }
}
