//! `bombus submit`: work that outlives this machine.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tasks::Asked;
use super::{Global, mesh, output, result};
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;

mod batch;

/// Largest file of prompts. The node takes less in one prompt.
const FILE_BYTES_MAX: u64 = 64 << 20;
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// What everybody who submits ought to know.
const STORED_EVERYWHERE: &str =
    "note: prompts and answers of tasks are stored on all nodes of the swarm; --encrypt seals them";

/// Arguments of `bombus submit`.
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    /// The prompt; several words are joined. A file follows it
    #[arg(value_name = "PROMPT", required_unless_present = "file")]
    prompt: Vec<String>,
    /// Take the prompt from a file, or with - from a pipe. A file of prompts, .jsonl or .ndjson, makes a task of each of its lines: a text
    /// in quotes, or an object such as {"id": "a", "prompt": "..."}
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Each line of the file is a task, whatever the file is called
    #[arg(long, requires = "file")]
    lines: bool,
    /// The model [default: that of the node]
    #[arg(long, short, value_name = "MODEL")]
    model: Option<String>,
    /// Instructions that hold for the whole answer
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,
    /// Cut a long prompt into tasks of their own; the answers are put together in their order
    #[arg(long, value_name = "HOW", default_value = "none")]
    chunk: Chunk,
    /// Most characters of a chunk [default: 4000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    max_chunk: Option<u32>,
    /// What stands between the answers of the chunks
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    joiner: Option<String>,
    /// A prompt that each chunk is put into, in place of {text}: "Summarise: {text}". Where it has no {text}, the chunk follows it
    #[arg(long, value_name = "TEMPLATE")]
    map: Option<String>,
    /// A prompt that the answers of all chunks are put into, for one answer of the whole
    #[arg(long, value_name = "TEMPLATE")]
    reduce: Option<String>,
    /// Only this node is to do it: its name, its id, or a beginning of either
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// Seal it: of all nodes only the one that is to do it can read the prompt, and only this machine's node the answer
    #[arg(long)]
    encrypt: bool,
    /// Seal it to so many of the nodes that could do it, the best first, so that one can go on where another dies while this machine is away
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=8))]
    seal_to: Option<u32>,
    /// 1 to 10; more comes first [default: 5]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u8).range(1..=10))]
    priority: Option<u8>,
    /// Seconds that an attempt may take, 1 to 3600 [default: 300]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=3_600))]
    timeout: Option<u32>,
    /// How often it is tried, 1 to 10 [default: tasks.max_attempts of the node's configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10))]
    attempts: Option<u32>,
    /// A word of your own: the same command with the same key is the same task, on any machine. Of a file of prompts it is the batch's id
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
    /// Wait for the answer and print it in place of the id
    #[arg(long, short)]
    wait: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// How a prompt is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Chunk {
    /// Not at all
    None,
    /// Between paragraphs
    Paragraph,
    /// Between words
    Size,
}

/// What the node says of a task that it took.
#[derive(Debug, Deserialize)]
struct Accepted {
    task_id: String,
    message: String,
    encrypted: bool,
}

pub(super) fn run(global: &Global, args: &SubmitArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let said = args.prompt.join(" ");
    let text = args.file.as_deref().map(read).transpose()?;
    let is_list = |file: &PathBuf| file.extension().is_some_and(|end| end == "jsonl" || end == "ndjson");
    let lines = args.lines || args.file.as_ref().is_some_and(is_list);
    if lines && !said.is_empty() {
        let failure = Failure::new(Exit::Usage, "each line of the file is a prompt of its own, so there is no other");
        return Err(failure.hint("--map puts text around each chunk of a prompt").into());
    }
    let about_chunks = args.max_chunk.is_some() || args.joiner.is_some();
    if about_chunks && args.chunk == Chunk::None && !lines {
        let failure = Failure::new(Exit::Usage, "--max-chunk and --joiner are about chunks, and the prompt is not cut");
        return Err(failure.hint("--chunk paragraph or --chunk size cuts it").into());
    }
    let parts = [said, text.unwrap_or_default()];
    let text = parts.into_iter().filter(|part| !part.trim().is_empty()).collect::<Vec<_>>().join("\n\n");
    if text.trim().is_empty() {
        let failure = Failure::new(Exit::Usage, "there is no prompt");
        return Err(failure.hint("bombus submit \"Why is the sky blue?\", or --file FILE").into());
    }
    super::block_on(async {
        let data_dir = global.data_dir()?;
        if lines {
            let tasks = batch::read(&text, args)?;
            let node = mesh::need_node(&data_dir).await?;
            return batch::submit(global, Asked::new(global, &data_dir, node), args, tasks).await;
        }
        let node = mesh::need_node(&data_dir).await?;
        let body = body(args, [("prompt".to_owned(), Value::from(text))].into_iter().collect());
        let (accepted, told) = submit(&node, &body, args.key.as_deref()).await?;
        note(global, &accepted);
        if args.wait {
            global.notice(&format!("task {}: {}", accepted.task_id, accepted.message));
            let told = Asked::new(global, &data_dir, node).end_of(&accepted.task_id).await?;
            return result::tell(global, &told, args.json);
        }
        if args.json {
            output::print_json(&told)?;
        } else {
            output::print(&format!("{}\n", accepted.task_id))?;
            global.notice(&accepted.message);
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Says who can read what is submitted.
fn note(global: &Global, accepted: &Accepted) {
    if !accepted.encrypted {
        global.notice(STORED_EVERYWHERE);
    }
}

fn read(file: &Path) -> Result<String> {
    let failed = |error: std::io::Error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failure };
        Failure::new(exit, format!("{} cannot be read: {error}", file.display()))
    };
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let opened = std::fs::File::open(file).map_err(failed)?;
        opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let message = format!("{} has more than {} MiB", file.display(), FILE_BYTES_MAX >> 20);
        return Err(Failure::new(Exit::Usage, message).hint("split it into several files").into());
    }
    let mut text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(Exit::Usage, format!("{} is not UTF-8 text", file.display())))?;
    // Some editors put a mark before everything.
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    Ok(text)
}

/// Puts a request together: what the flags say, and the payload, which wins.
fn body(args: &SubmitArgs, payload: Map<String, Value>) -> Value {
    let mut whole = Map::new();
    for (name, value) in [("model", &args.model), ("system", &args.system)] {
        if let Some(value) = value {
            whole.insert(name.to_owned(), value.as_str().into());
        }
    }
    whole.extend(payload);
    let mut body = json!({ "payload": whole });
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            body[name] = value;
        }
    };
    let chunk = match args.chunk {
        Chunk::None => None,
        Chunk::Paragraph => Some("paragraph".into()),
        Chunk::Size => Some("size".into()),
    };
    set("chunk", chunk);
    set("max_chunk", args.max_chunk.map(Value::from));
    set("joiner", args.joiner.as_deref().map(Value::from));
    set("map", args.map.as_deref().map(Value::from));
    set("reduce", args.reduce.as_deref().map(Value::from));
    set("to", args.to.as_deref().map(Value::from));
    set("encrypt", args.encrypt.then(|| true.into()));
    set("seal_to", args.seal_to.map(Value::from));
    set("priority", args.priority.map(Value::from));
    set("timeout_seconds", args.timeout.map(Value::from));
    set("max_attempts", args.attempts.map(Value::from));
    body
}

/// Hands a task to the node.
async fn submit(node: &NodeClient, body: &Value, key: Option<&str>) -> Result<(Accepted, Value)> {
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let value = HeaderValue::from_str(key).map_err(|_| {
            Failure::new(Exit::Usage, "the key has to have visible characters of ASCII alone").hint("--key nightly-7")
        })?;
        headers.insert(IDEMPOTENCY_KEY, value);
    }
    let response = node.send_with(Method::POST, "/task", Some(body), headers).await?;
    let broken = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Unavailable, format!("the node broke off: {error}"))
            .hint("the same command with the same --key submits nothing twice")
    };
    let told: Value = response.json().await.map_err(|error| broken(&error))?;
    let accepted = serde_json::from_value(told.clone()).map_err(|error| broken(&error))?;
    Ok((accepted, told))
}

#[cfg(test)]
mod tests {
    use bombus_core::tasks::chunk::CHUNK_CHARS;

    use super::*;

    #[test]
    fn the_default_that_is_told_of_chunks_is_that_of_nodes() {
        let command = SubmitArgs::augment_args(clap::Command::new("submit"));
        let argument = command.get_arguments().find(|argument| argument.get_id().as_str() == "max_chunk").unwrap();
        let help = argument.get_help().unwrap().to_string();
        assert!(help.ends_with(&format!("[default: {CHUNK_CHARS}]")), "{help}");
    }
}
