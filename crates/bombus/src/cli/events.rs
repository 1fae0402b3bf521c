//! `bombus events`: what happened in the swarm, and what happens.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::Method;
use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::answerer::running_node;
use super::{Global, mesh, output};
use crate::data_dir::DataDir;
use crate::node_client::{NodeClient, encoded};
use crate::printable::one_line;

/// Longest accepted line of the stream.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Time between two looks for a node that went away.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Arguments of `bombus events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Only this kind, for example peer:joined, or peer for all of its family; may be given several times
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only what came after the event with this number
    #[arg(long, value_name = "N")]
    after: Option<u64>,
    /// As one JSON object on each line
    #[arg(long)]
    json: bool,
}

/// An event as the node tells it.
#[derive(Debug, Deserialize)]
struct Event {
    id: u64,
    kind: String,
    timestamp: f64,
    #[serde(default)]
    data: Value,
}

/// What comes in the stream.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    /// The data of an event.
    Event(String),
    /// Events are missing.
    Lagged,
}

/// How a stream ended.
enum End {
    /// Nobody reads what is printed.
    Unread,
    /// The node ended it, having sent events up to this number.
    Broken(Option<u64>),
}

pub(super) fn run(global: &Global, args: &EventsArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let data_dir = global.data_dir()?;
        let mut node = mesh::need_node(&data_dir).await?;
        // Without a number, all that is kept comes first.
        let mut after = args.after.unwrap_or(0);
        loop {
            match read(global, &node, args, after).await? {
                End::Broken(last) if args.follow => after = last.unwrap_or(after),
                End::Unread | End::Broken(_) => return Ok(ExitCode::SUCCESS),
            }
            node = come_back(global, &data_dir).await?;
        }
    })
}

/// Waits for a node that went away. It may have another address when it comes back.
async fn come_back(global: &Global, data_dir: &DataDir) -> Result<NodeClient> {
    let mut told = false;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        // One that is starting or stopping does not answer for a while, which is no error here.
        if let Ok(Some(node)) = running_node(data_dir).await {
            return Ok(node);
        }
        if !std::mem::replace(&mut told, true) {
            global.notice("the node went away; waiting for it to come back");
        }
    }
}

async fn read(global: &Global, node: &NodeClient, args: &EventsArgs, after: u64) -> Result<End> {
    let kinds = encoded(&args.kind.join(","));
    let path = format!("/events?after={after}&follow={}&kind={kinds}", args.follow);
    let response = node.send(Method::GET, &path, None).await?;
    let lines = FramedRead::new(
        StreamReader::new(response.bytes_stream().map_err(std::io::Error::other)),
        LinesCodec::new_with_max_length(LINE_BYTES_MAX),
    );
    let mut frames = std::pin::pin!(frames(lines.map_err(|error| error.to_string())));
    let mut last = None;
    while let Some(frame) = frames.next().await {
        let line = match frame {
            // A node that ends breaks its streams off.
            Err(reason) => {
                tracing::debug!(reason, "the stream of events broke off");
                break;
            }
            Ok(Frame::Lagged) => {
                global.notice("events are missing: they came faster than they were read, or are kept no longer");
                continue;
            }
            Ok(Frame::Event(data)) => match serde_json::from_str::<Event>(&data) {
                Ok(event) => {
                    last = Some(event.id);
                    if args.json { data + "\n" } else { event.line() }
                }
                Err(error) => {
                    tracing::warn!(%error, "an event is not understood");
                    continue;
                }
            },
        };
        if !output::print_piece(&line)? {
            return Ok(End::Unread);
        }
    }
    Ok(End::Broken(last))
}

/// Puts lines of server-sent events together.
pub(super) fn frames(lines: impl Stream<Item = Result<String, String>>) -> impl Stream<Item = Result<Frame, String>> {
    async_stream::stream! {
        let (mut kind, mut data) = (String::new(), String::new());
        for await line in lines {
            let line = match line {
                Ok(line) => line,
                Err(reason) => {
                    yield Err(reason);
                    return;
                }
            };
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => kind = value.to_owned(),
                "data" => data.push_str(value),
                "" if line.is_empty() => {
                    let (kind, data) = (std::mem::take(&mut kind), std::mem::take(&mut data));
                    match kind.as_str() {
                        "lagged" => yield Ok(Frame::Lagged),
                        _ if data.is_empty() => {}
                        _ => yield Ok(Frame::Event(data)),
                    }
                }
                _ => {}
            }
        }
    }
}

impl Event {
    fn line(&self) -> String {
        let time = OffsetDateTime::from_unix_timestamp(self.timestamp as i64).ok();
        let time = time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "-".to_owned());
        one_line(&format!("{}  {time}  {:14}  {}", self.id, self.kind, words(&self.data))).trim_end().to_owned() + "\n"
    }
}

/// Writes an object as `name value, name value`.
fn words(data: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match data {
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !value.is_null());
            present.map(|(name, value)| format!("{name} {}", word(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Null => String::new(),
        other => word(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn frames_are_put_together_from_lines() {
        let lines = [
            "id: 1",
            "event: peer:joined",
            "data: {\"id\":1}",
            "",
            ": alive",
            "",
            "event: lagged",
            "data: {}",
            "",
            "data: cut",
        ];
        let lines = futures::stream::iter(lines.map(|line| Ok(line.to_owned())));
        let frames: Vec<_> = frames(lines).collect().await;
        assert_eq!(frames, [Ok(Frame::Event("{\"id\":1}".into())), Ok(Frame::Lagged)]);
    }

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            id: 7,
            kind: "peer:joined".into(),
            timestamp: 951_782_400.9,
            data: json!({ "node_id": "12D3KooW", "name": "hi\nve", "reason": null }),
        };
        assert_eq!(event.line(), "7  2000-02-29T00:00:00Z  peer:joined     node_id 12D3KooW, name hive\n");
    }
}
