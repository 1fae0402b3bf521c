//! A client as people have it: it asks one node for a stream, and judges what comes.

use std::pin::Pin;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader, Lines};
use tokio::process::Child;
use tokio_util::io::StreamReader;

use crate::harness::within;
use crate::model::with;
use crate::swarm::Member;

/// The header that says who answers.
const ROUTE: &str = "x-bombus-route";
/// The header that says where an answer may come from.
const SCOPE: &str = "x-bombus-scope";

/// Words of several scripts, so that a character cut in two or a lost one shows.
const WORDS: [&str; 7] = ["bee", "Grüße", "蜂蜜", "🐝🍯", "naïve", "мёд", "ελιά"];

/// Returns so many words, none of which is like another one of this or of another number.
pub(in crate::swarm) fn words(number: usize, count: usize) -> String {
    let word = |index: usize| format!("{}{number}.{index}", WORDS[(index * 3 + number) % WORDS.len()]);
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}

/// A request for a streamed answer.
#[derive(Debug, Clone)]
pub(in crate::swarm) struct Question {
    body: Value,
    scope: Option<String>,
}

impl Question {
    /// Asks the model `fake`, which repeats the text where its script says so.
    pub(in crate::swarm) fn new(text: &str) -> Self {
        let message = json!({ "role": "user", "content": text });
        let body = json!({
            "model": "fake", "stream": true, "stream_options": { "include_usage": true }, "messages": [message],
        });
        Self { body, scope: None }
    }

    /// Adds members to the request.
    pub(in crate::swarm) fn with(mut self, more: &Value) -> Self {
        self.body = with(self.body, more);
        self
    }

    /// Says where the answer may come from: `local`, `remote` or `node=...`.
    pub(in crate::swarm) fn within(mut self, scope: &str) -> Self {
        self.scope = Some(scope.to_owned());
        self
    }

    /// Asks a node. Whether it answers is told by the stream.
    pub(in crate::swarm) async fn ask(&self, member: &Member) -> Stream {
        let began = Instant::now();
        let url = member.url("/v1/chat/completions");
        let (head, lines, keeper) = match member.machine() {
            None => {
                let mut request = member.client().post(url).json(&self.body);
                if let Some(scope) = &self.scope {
                    request = request.header(SCOPE, scope);
                }
                let response = within("the beginning of an answer", request.send()).await.unwrap();
                let route = response.headers().get(ROUTE).map(|value| value.to_str().unwrap().to_owned());
                let head = Head { status: response.status().as_u16(), route };
                let bytes = response.bytes_stream().map_err(std::io::Error::other);
                let reader: Reader = Box::pin(StreamReader::new(bytes));
                (head, BufReader::new(reader).lines(), None)
            }
            Some(machine) => {
                assert!(self.scope.is_none(), "no test asks so on a machine of its own");
                let mut curl = machine.command("curl");
                curl.args(["--silent", "--no-buffer", "--noproxy", "*", "--include"]).arg(url);
                curl.args(["--header", "content-type: application/json", "--data", &self.body.to_string()]);
                let mut child = curl.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
                let reader: Reader = Box::pin(child.stdout.take().unwrap());
                let mut lines = BufReader::new(reader).lines();
                (Head::read(&mut lines).await, lines, Some(child))
            }
        };
        let answer = Answer { status: head.status, route: head.route.unwrap_or_default(), ..Answer::default() };
        Stream { lines, answer, last: began, _keeper: keeper }
    }

    /// Asks a node and takes the whole stream.
    pub(in crate::swarm) async fn answer(&self, member: &Member) -> Answer {
        self.ask(member).await.rest().await
    }
}

type Reader = Pin<Box<dyn AsyncRead + Send>>;

struct Head {
    status: u16,
    route: Option<String>,
}

impl Head {
    async fn read(lines: &mut Lines<BufReader<Reader>>) -> Self {
        let mut head = Self { status: 0, route: None };
        while let Some(line) = within("the head of an answer", lines.next_line()).await.unwrap() {
            if line.is_empty() {
                break;
            }
            if head.status == 0 {
                head.status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            }
            if let Some(("x-bombus-route", route)) = line.split_once(": ") {
                head.route = Some(route.to_owned());
            }
        }
        head
    }
}

/// What came of an answer.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Answer {
    pub(in crate::swarm) status: u16,
    route: String,
    pub(in crate::swarm) text: String,
    /// What the comments at seams said.
    pub(in crate::swarm) seams: Vec<String>,
    /// What the final chunk said of seams.
    pub(in crate::swarm) continued: Vec<Value>,
    pub(in crate::swarm) finish: Option<String>,
    pub(in crate::swarm) usage: Value,
    pub(in crate::swarm) error: Option<Value>,
    /// Whether the stream said that it is whole.
    pub(in crate::swarm) done: bool,
    /// How many pieces of text came.
    pub(in crate::swarm) pieces: usize,
    /// The longest time without any text, the time before the first included.
    pub(in crate::swarm) longest_gap: Duration,
}

impl Answer {
    /// Returns the id of the node that began to answer.
    pub(in crate::swarm) fn node(&self) -> &str {
        self.route.split(';').next().unwrap_or_default()
    }

    /// Expects an answer that is whole and right in all of its parts, however many wrote it.
    pub(in crate::swarm) fn assert_whole(&self, expected: &str, finish: &str) {
        self.assert_ended(finish);
        if self.text != expected {
            let same = self.text.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
            let after = |text: &str| text.chars().skip(same.saturating_sub(12)).take(48).collect::<String>();
            panic!(
                "from character {same} on the answer is {:?} where {:?} was expected; seams: {:?}",
                after(&self.text),
                after(expected),
                self.seams
            );
        }
        let words = expected.split(' ').filter(|word| !word.is_empty()).count();
        assert_eq!(self.usage["completion_tokens"], words, "{}", self.usage);
    }

    /// Expects an answer that ended well, whatever it says.
    pub(in crate::swarm) fn assert_ended(&self, finish: &str) {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.error.is_none() && self.done, "it is not whole: {self:?}");
        assert_eq!(self.finish.as_deref(), Some(finish), "{self:?}");
        let total = self.usage["prompt_tokens"].as_u64().zip(self.usage["completion_tokens"].as_u64());
        assert_eq!(total.map(|(prompt, completion)| prompt + completion), self.usage["total_tokens"].as_u64());
        assert_eq!(self.seams.len(), self.continued.len(), "each seam is told where it is and at the end: {self:?}");
    }
}

/// An answer that is under way. Dropping it is a client that goes away.
pub(in crate::swarm) struct Stream {
    lines: Lines<BufReader<Reader>>,
    answer: Answer,
    last: Instant,
    _keeper: Option<Child>,
}

impl Stream {
    /// Returns what has come so far.
    pub(in crate::swarm) fn so_far(&self) -> &Answer {
        &self.answer
    }

    /// Reads until so many words have come whole, or all that will come.
    pub(in crate::swarm) async fn until_words(&mut self, count: usize) {
        while self.answer.text.split(' ').count() <= count && self.read().await {}
    }

    /// Reads until so many pieces of text have come, or all that will come.
    pub(in crate::swarm) async fn until_pieces(&mut self, count: usize) {
        while self.answer.pieces < count && self.read().await {}
    }

    /// Reads until the first text.
    pub(in crate::swarm) async fn until_first_text(&mut self) {
        while self.answer.text.is_empty() {
            assert!(self.read().await, "no text came: {:?}", self.answer);
        }
    }

    /// Reads to the end.
    pub(in crate::swarm) async fn rest(mut self) -> Answer {
        while self.read().await {}
        self.answer
    }

    /// Reads a line; false at the end of the stream, orderly or not.
    async fn read(&mut self) -> bool {
        let Ok(Some(line)) = within("the next line of an answer", self.lines.next_line()).await else { return false };
        if let Some(comment) = line.strip_prefix(": ") {
            if let Some(seam) = comment.strip_prefix("continued by ") {
                self.answer.seams.push(seam.to_owned());
            }
        } else if line == "data: [DONE]" {
            self.answer.done = true;
        } else if let Some(data) = line.strip_prefix("data: ") {
            self.take(&serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")));
        } else if !line.is_empty() && self.answer.status != 200 {
            self.answer.error = serde_json::from_str::<Value>(&line).ok().map(|body| body["error"].clone());
        }
        true
    }

    fn take(&mut self, chunk: &Value) {
        let answer = &mut self.answer;
        assert!(!answer.done, "nothing follows the end: {chunk}");
        if let Some(text) = chunk["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty()) {
            answer.longest_gap = answer.longest_gap.max(self.last.elapsed());
            self.last = Instant::now();
            assert!(answer.finish.is_none(), "no text follows the end: {text:?}");
            answer.text.push_str(text);
            answer.pieces += 1;
        }
        if let Some(finish) = chunk["choices"][0]["finish_reason"].as_str() {
            assert_eq!(answer.finish.replace(finish.to_owned()), None, "an answer ends once");
        }
        if let Some(continued) = chunk["bombus"]["continued"].as_array() {
            answer.continued.clone_from(continued);
        }
        if chunk["usage"].is_object() {
            assert!(answer.usage.is_null(), "usage is told once");
            answer.usage = chunk["usage"].clone();
        }
        if chunk["error"].is_object() {
            answer.error = Some(chunk["error"].clone());
        }
    }
}
