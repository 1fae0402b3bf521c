//! The look at the file of a batch: whether it is one of requests, and which of its lines cannot be done.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bombus_core::batches::{
    BatchFacts, CheckedDocument, Endpoint, LINE_BYTES_MAX, LINES_MAX, LineError, read_request_line,
};
use bombus_core::tasks::WholeRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::error::FilesError;
use super::read::{Line, Lines};
use super::shared::Shared;
use super::submit::submission_of;
use super::upload::Blocks;
use super::{BodyReader, BodyRefusal};
use crate::store::TEXT_BYTES_MAX;
use crate::tasks::{BatchItem, TasksError};

/// Most errors that are told of a file.
const ERRORS_MAX: usize = 20;

/// A line that asks what a task cannot do, as a line of a list in blocks of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Refused {
    /// As of a line.
    pub(super) index: u32,
    pub(super) custom_id: String,
    pub(super) status: u16,
    pub(super) body: Value,
}

/// What was seen of a file so far.
pub(super) struct Checker {
    batch: String,
    endpoint: Endpoint,
    reader: Arc<dyn BodyReader>,
    /// The line of each `custom_id`.
    seen: HashMap<String, u32>,
    lines: u32,
    refused: u32,
    errors: Vec<LineError>,
}

impl Checker {
    pub(super) fn new(batch: &str, endpoint: Endpoint, reader: Arc<dyn BodyReader>) -> Self {
        let batch = batch.to_owned();
        Self { batch, endpoint, reader, seen: HashMap::new(), lines: 0, refused: 0, errors: Vec::new() }
    }

    /// Looks at a line; returns it where it cannot be done.
    fn look(&mut self, line: &Line) -> Option<Refused> {
        self.lines += 1;
        if self.lines > LINES_MAX {
            if self.lines == LINES_MAX + 1 {
                let message = format!("the file has more than {LINES_MAX} requests; cut it into several");
                self.error("too_many_requests", message, None, None);
            }
            return None;
        }
        let Some(text) = &line.text else {
            let message = format!("the line has more than {LINE_BYTES_MAX} bytes");
            self.error("line_too_long", message, None, Some(line.number));
            return None;
        };
        let request = match read_request_line(text, self.endpoint) {
            Ok(request) => request,
            Err(wrong) => {
                self.error(wrong.code, wrong.message, wrong.param, Some(line.number));
                return None;
            }
        };
        if let Some(first) = self.seen.insert(request.custom_id.clone(), line.number) {
            let message = format!("the 'custom_id' is that of line {first}, too; each has to be another one");
            self.error("duplicate_custom_id", message, Some("custom_id"), Some(line.number));
            return None;
        }
        let refusal = match self.reader.read(self.endpoint, &request.body) {
            Ok(whole) => self.impossible(&request.custom_id, whole)?,
            Err(refusal) => refusal,
        };
        self.refused += 1;
        let (status, body) = (refusal.status, refusal.body);
        Some(Refused { index: line.index, custom_id: request.custom_id, status, body })
    }

    /// Says why a request cannot be a task, where that is so.
    fn impossible(&self, custom_id: &str, request: WholeRequest) -> Option<BodyRefusal> {
        let bytes = serde_json::to_vec(&request).map_or(usize::MAX, |json| json.len());
        let item = BatchItem { batch: self.batch.clone(), item: custom_id.to_owned(), total: None };
        let impossible = match submission_of(item, request).check() {
            Err(TasksError::Invalid { param, message }) => (Some(param), message),
            _ if bytes > TEXT_BYTES_MAX => {
                let (mib, max) = (bytes >> 20, TEXT_BYTES_MAX >> 20);
                (None, format!("with all of its copies the request has {mib} MiB; a task has at most {max} MiB"))
            }
            _ => return None,
        };
        let (param, message) = impossible;
        let error = json!({ "message": message, "type": "invalid_request_error", "param": param, "code": null });
        Some(BodyRefusal { status: 400, body: json!({ "error": error }) })
    }

    fn error(&mut self, code: &str, message: String, param: Option<&str>, line: Option<u32>) {
        if self.errors.len() < ERRORS_MAX {
            let param = param.map(str::to_owned);
            self.errors.push(LineError { code: code.to_owned(), message, param, line });
        }
    }

    /// Looks at lines; returns those that cannot be done.
    pub(super) fn look_at(&mut self, lines: &[Line]) -> Vec<Refused> {
        lines.iter().filter_map(|line| self.look(line)).collect()
    }

    /// Says what came of it.
    pub(super) fn finish(mut self, facts: &BatchFacts, refusals: Option<String>, at: u64) -> CheckedDocument {
        if self.lines == 0 {
            self.error("empty_file", "the file has no requests".to_owned(), None, None);
        }
        CheckedDocument {
            id: facts.key("checked"),
            at,
            lines: self.lines,
            refused: self.refused,
            refusals: refusals.filter(|_| self.errors.is_empty()),
            errors: self.errors,
        }
    }
}

/// Looks at the file of a batch.
pub(super) async fn check(shared: &Shared, facts: &BatchFacts) -> Result<CheckedDocument, FilesError> {
    let made = &facts.made;
    let mut checker = Checker::new(&made.id, made.endpoint, Arc::clone(&shared.reader));
    let mut lines = Lines::open(&shared.db, &made.root, &made.by).await?;
    let mut list = Blocks::new(&shared.db);
    while let Some(group) = lines.next_group().await? {
        // Large requests take a while to read.
        let looked = spawn_blocking(move || {
            let refused = checker.look_at(&group);
            (checker, refused)
        });
        let (back, refused) = looked.await.map_err(|error| FilesError::Document(error.to_string()))?;
        checker = back;
        for refused in refused {
            let mut line = serde_json::to_vec(&refused).map_err(|error| FilesError::Document(error.to_string()))?;
            line.push(b'\n');
            list.write(&line).await?;
        }
        if checker.errors.len() >= ERRORS_MAX || checker.lines > LINES_MAX {
            break;
        }
    }
    let refusals = if list.bytes > 0 { Some(list.finish().await?.to_string()) } else { None };
    Ok(checker.finish(facts, refusals, shared.now_ms()))
}

/// The lines of a batch that cannot be done, in their order.
pub(super) struct Refusals {
    lines: Option<Lines>,
    next: Option<Refused>,
}

impl Refusals {
    pub(super) async fn open(shared: &Shared, facts: &BatchFacts) -> Result<Self, FilesError> {
        let root = facts.checked.as_ref().and_then(|checked| checked.refusals.as_deref());
        let lines = match root {
            Some(root) => Some(Lines::open(&shared.db, root, &facts.made.by).await?),
            None => None,
        };
        let mut refusals = Self { lines, next: None };
        refusals.next = refusals.read().await?;
        Ok(refusals)
    }

    async fn read(&mut self) -> Result<Option<Refused>, FilesError> {
        let Some(lines) = &mut self.lines else { return Ok(None) };
        let Some(line) = lines.next().await? else { return Ok(None) };
        let read = serde_json::from_slice(&line.text.unwrap_or_default());
        // What stands there is nothing for a log.
        let wrong = |error: serde_json::Error| format!("a list of refused lines, at byte {}", error.column());
        read.map(Some).map_err(|error| FilesError::Document(wrong(error)))
    }

    /// Returns what a line was refused for, if it was. Lines are asked for in their order.
    pub(super) async fn take(&mut self, index: u32) -> Result<Option<Refused>, FilesError> {
        while self.next.as_ref().is_some_and(|next| next.index < index) {
            self.next = self.read().await?;
        }
        if self.next.as_ref().is_none_or(|next| next.index != index) {
            return Ok(None);
        }
        let after = self.read().await?;
        Ok(std::mem::replace(&mut self.next, after))
    }

    /// Returns the numbers of all.
    pub(super) async fn numbers(mut self) -> Result<HashSet<u32>, FilesError> {
        let mut numbers = HashSet::new();
        while let Some(next) = self.next.take() {
            numbers.insert(next.index);
            self.next = self.read().await?;
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bombus_core::batches::{BatchDocument, batch_id};
    use bombus_core::chat::{ChatRequest, Prompt};

    use super::*;

    /// Asks the model that the body names, or else `m`, for as much as the body says.
    fn asking(body: &str) -> WholeRequest {
        let body: Value = serde_json::from_str(body).unwrap();
        let model =
            body["model"].as_str().unwrap_or("m").repeat(usize::try_from(body["times"].as_u64().unwrap_or(1)).unwrap());
        let prompt = "word ".repeat(usize::try_from(body["words"].as_u64().unwrap_or(1)).unwrap());
        let request = ChatRequest::new(model, Prompt::Raw(prompt));
        WholeRequest::Chat { requests: vec![request], answers: 1, form: "chat".into() }
    }

    struct Picky;

    impl BodyReader for Picky {
        fn read(&self, _: Endpoint, body: &str) -> Result<WholeRequest, BodyRefusal> {
            match body.contains("bad") {
                true => Err(BodyRefusal { status: 400, body: json!({ "error": "bad" }) }),
                false => Ok(asking(body)),
            }
        }
    }

    fn checked(texts: &[&str]) -> (CheckedDocument, Vec<Refused>) {
        let facts = BatchFacts::new(BatchDocument {
            id: batch_id([1; 16]),
            input_file: "file-a".into(),
            root: "z".into(),
            bytes: 9,
            endpoint: Endpoint::Chat,
            metadata: BTreeMap::new(),
            by: "me".into(),
            created_at: 5_000,
        });
        let line = |(number, text): (u32, &&str)| Line { number, index: number, text: Some(text.as_bytes().to_vec()) };
        let lines: Vec<Line> = (1..).zip(texts).map(line).collect();
        let mut checker = Checker::new("batch", Endpoint::Chat, Arc::new(Picky));
        let refused = checker.look_at(&lines);
        (checker.finish(&facts, Some("list".into()), 7), refused)
    }

    fn line(id: &str, body: &str) -> String {
        format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/chat/completions", "body": {body}}}"#)
    }

    #[test]
    fn lines_that_cannot_be_done_are_told_and_do_not_end_the_batch() {
        let (checked, refused) = checked(&[&line("a", "{}"), &line("b", r#"{"bad": 1}"#), &line("c", "{}")]);
        assert_eq!((checked.lines, checked.refused, checked.errors.len()), (3, 1, 0));
        assert_eq!(checked.refusals.as_deref(), Some("list"));
        assert_eq!((refused[0].index, refused[0].custom_id.as_str(), refused[0].status), (2, "b", 400));
    }

    #[test]
    fn lines_that_can_be_no_task_are_refused_and_hold_up_no_others() {
        let (checked, refused) = checked(&[
            &line("long", r#"{"times": 257}"#),
            &line("a", "{}"),
            &line("large", &format!(r#"{{"words": {}}}"#, TEXT_BYTES_MAX / 5 + 1)),
        ]);
        assert_eq!((checked.lines, checked.refused, checked.errors.len()), (3, 2, 0));
        let told: Vec<_> = refused.iter().map(|refused| (refused.custom_id.as_str(), refused.status)).collect();
        assert_eq!(told, [("long", 400), ("large", 400)]);
        assert_eq!(refused[0].body["error"]["param"], "model");
        assert!(refused[1].body["error"]["message"].as_str().unwrap().contains("32 MiB"), "{:?}", refused[1].body);
    }

    #[test]
    fn a_file_that_is_none_of_requests_is_refused_with_its_lines() {
        let (checked, _) = checked(&[&line("a", "{}"), "nonsense", &line("a", "{}"), &line("b", "[]")]);
        let told: Vec<_> = checked.errors.iter().map(|error| (error.code.as_str(), error.line)).collect();
        let wanted = [("invalid_json_line", Some(2)), ("duplicate_custom_id", Some(3)), ("invalid_body", Some(4))];
        assert_eq!(told, wanted);
        assert_eq!(checked.refusals, None);
        assert!(checked.errors[1].message.contains("line 1"), "{:?}", checked.errors[1]);
        assert_eq!(self::checked(&[]).0.errors[0].code, "empty_file");
        let many = vec!["nonsense"; 2 * ERRORS_MAX];
        assert_eq!(self::checked(&many).0.errors.len(), ERRORS_MAX);
    }

    #[test]
    fn more_lines_than_a_batch_may_have_are_refused_once() {
        let mut checker = Checker::new("batch", Endpoint::Chat, Arc::new(Picky));
        checker.lines = LINES_MAX - 1;
        let lines =
            |number: u32| Line { number, index: number, text: Some(line(&number.to_string(), "{}").into_bytes()) };
        let lines: Vec<Line> = (0..4).map(lines).collect();
        checker.look_at(&lines);
        assert_eq!(checker.errors.iter().map(|error| error.code.as_str()).collect::<Vec<_>>(), ["too_many_requests"]);
    }
}
