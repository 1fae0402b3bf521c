//! A file of prompts: one task a line.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{SubmitArgs, body, note, submit as submit_one};
use crate::cli::tasks::Asked;
use crate::cli::{Global, output, result};
use crate::failure::{Exit, Failure};
use crate::node_client::Refusal;

/// Most lines of a file.
const LINES_MAX: usize = 100_000;
/// Tasks that are handed to the node at a time, so that they share their waits for the disk.
const AT_ONCE: usize = 32;
/// Longest id of a task within its batch, in bytes.
const ITEM_BYTES_MAX: usize = 256;
/// Longest id of a batch, in bytes.
const BATCH_BYTES_MAX: usize = 128;

/// A task of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    /// Where it stands, from 1.
    number: usize,
    /// What the file calls it; its number where it has no name.
    item: String,
    /// What the node is asked, but for the batch.
    body: Value,
}

/// A line that is an object. Numbers are texts here: their meaning is the node's affair.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    #[serde(alias = "custom_id")]
    id: Option<Value>,
    task_type: Option<Value>,
    /// Where, when and how often; each wins over its flag.
    to: Option<Value>,
    priority: Option<Value>,
    timeout_seconds: Option<Value>,
    max_attempts: Option<Value>,
    chunk: Option<Value>,
    max_chunk: Option<Value>,
    joiner: Option<Value>,
    /// The payload.
    model: Option<Value>,
    prompt: Option<Value>,
    messages: Option<Value>,
    text: Option<Value>,
    system: Option<Value>,
    temperature: Option<Value>,
    max_tokens: Option<Value>,
    top_p: Option<Value>,
    top_k: Option<Value>,
    stop: Option<Value>,
    seed: Option<Value>,
    format: Option<Value>,
    options: Option<Value>,
}

/// Reads all lines before anything is submitted.
pub(super) fn read(text: &str, args: &SubmitArgs) -> Result<Vec<Line>> {
    let (mut lines, mut items) = (Vec::new(), BTreeMap::new());
    for (index, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let line = line(index + 1, text, args)?;
        if let Some(before) = items.insert(line.item.clone(), line.number) {
            let message = format!("line {}: line {before} has the id {:?} already", line.number, line.item);
            return Err(Failure::new(Exit::Usage, message).hint("give each line an id of its own").into());
        }
        lines.push(line);
        if lines.len() > LINES_MAX {
            let message = format!("the file has more than {LINES_MAX} tasks");
            return Err(Failure::new(Exit::Usage, message).hint("split it into several files").into());
        }
    }
    Ok(lines)
}

fn line(number: usize, text: &str, args: &SubmitArgs) -> Result<Line> {
    let wrong = |reason: String| {
        Failure::new(Exit::Usage, format!("line {number}: {reason}"))
            .hint(r#"each line is a text in quotes, or an object such as {"id": "a", "prompt": "..."}"#)
    };
    let value: Value = serde_json::from_str(text).map_err(|error| wrong(format!("it is not valid JSON: {error}")))?;
    let object = match value {
        Value::String(prompt) => Map::from_iter([("prompt".to_owned(), Value::from(prompt))]),
        Value::Object(object) => object,
        _ => return Err(wrong("it is neither a text nor an object".to_owned()).into()),
    };
    let object: Object = serde_json::from_value(Value::Object(object)).map_err(|error| wrong(error.to_string()))?;
    let item = match &object.id {
        None | Some(Value::Null) => number.to_string(),
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(_) => return Err(wrong("'id' has to be a text".to_owned()).into()),
    };
    if item.is_empty() || item.len() > ITEM_BYTES_MAX || item.chars().any(char::is_control) {
        let reason = format!("'id' has to have 1 to {ITEM_BYTES_MAX} bytes without control characters");
        return Err(wrong(reason).into());
    }
    if object.prompt.is_none() && object.messages.is_none() && object.text.is_none() {
        return Err(wrong("it has neither a 'prompt' nor 'messages' nor a 'text'".to_owned()).into());
    }
    let embeds = object.text.is_some() && object.task_type.is_none();
    let present = |fields: Vec<(&str, Option<Value>)>| {
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>()
    };
    let payload = present(vec![
        ("model", object.model),
        ("prompt", object.prompt),
        ("messages", object.messages),
        ("text", object.text),
        ("system", object.system),
        ("temperature", object.temperature),
        ("max_tokens", object.max_tokens),
        ("top_p", object.top_p),
        ("top_k", object.top_k),
        ("stop", object.stop),
        ("seed", object.seed),
        ("format", object.format),
        ("options", object.options),
    ]);
    let mut body = body(args, payload);
    let own = present(vec![
        ("task_type", object.task_type.or_else(|| embeds.then(|| "embedding".into()))),
        ("to", object.to),
        ("priority", object.priority),
        ("timeout_seconds", object.timeout_seconds),
        ("max_attempts", object.max_attempts),
        ("chunk", object.chunk),
        ("max_chunk", object.max_chunk),
        ("joiner", object.joiner),
    ]);
    for (name, value) in own {
        body[name] = value;
    }
    // What every node would refuse is known before anything is submitted.
    bombus_http::tasks::check(&body).map_err(wrong)?;
    Ok(Line { number, item, body })
}

/// Submits all tasks, prints the batch's id, and on demand waits for the results.
pub(super) async fn submit(
    global: &Global,
    mut asked: Asked<'_>,
    args: &SubmitArgs,
    lines: Vec<Line>,
) -> Result<ExitCode> {
    let batch = match &args.key {
        Some(key) => checked(key)?,
        None => fresh()?,
    };
    let bar = result::bar(global, lines.len(), "submitted");
    let (mut submitted, mut failure) = (Vec::new(), None);
    {
        let node = asked.node();
        let works = lines.iter().map(|line| {
            let mut body = line.body.clone();
            body["batch"] = json!({ "id": batch, "item": line.item, "total": lines.len() });
            // The same file with the same key is the same tasks, so that a batch that broke off can be taken up.
            let key = format!("{batch}/{}", line.number);
            async move { (line, submit_one(node, &body, Some(&key)).await) }
        });
        let mut works = std::pin::pin!(stream::iter(works).buffered(AT_ONCE));
        while let Some((line, done)) = works.next().await {
            match done {
                Ok((accepted, _)) => {
                    if submitted.is_empty() {
                        bar.suspend(|| note(global, &accepted));
                    }
                    submitted.push((line.item.as_str(), accepted.task_id));
                }
                Err(error) => {
                    failure = Some((line.number, error));
                    break;
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if let Some((number, error)) = failure {
        global.notice(&format!(
            "{} of {} tasks of the batch {batch} were submitted; the same command with --key {batch} goes on",
            submitted.len(),
            lines.len()
        ));
        return Err(match error.downcast::<Refusal>() {
            Ok(refusal) => Refusal { message: format!("line {number}: {}", refusal.message), ..refusal }.into(),
            Err(error) => error.context(format!("line {number}")),
        });
    }
    if args.wait {
        global.notice(&format!("batch {batch}"));
        let ids: Vec<&str> = submitted.iter().map(|(_, id)| id.as_str()).collect();
        result::wait_for(global, &mut asked, &ids).await?;
        return result::of_batch(global, &asked, &batch).await;
    }
    if args.json {
        let tasks: Vec<Value> = submitted.iter().map(|(item, id)| json!({ "id": item, "task_id": id })).collect();
        output::print_json(&json!({ "batch": batch, "tasks": tasks }))?;
    } else {
        output::print(&format!("{batch}\n"))?;
        let safe = match lines.len() {
            1 => "1 task is safe".to_owned(),
            count => format!("{count} tasks are safe"),
        };
        global.notice(&format!("{safe}; bombus results --batch {batch} shows what came of them"));
    }
    Ok(ExitCode::SUCCESS)
}

fn checked(key: &str) -> Result<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    if (1..=BATCH_BYTES_MAX).contains(&key.len()) && key.bytes().all(plain) {
        return Ok(key.to_owned());
    }
    let message =
        format!("the key of a batch has to have 1 to {BATCH_BYTES_MAX} letters, digits, '.', '_', ':' and '-'");
    Err(Failure::new(Exit::Usage, message).hint("--key nightly-7").into())
}

/// Makes an id that no other batch has.
fn fresh() -> Result<String> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Failure, format!("the system gives no random numbers: {error}")))?;
    Ok(format!("batch-{}", hex::encode(bytes)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        submit: SubmitArgs,
    }

    fn lines(text: &str, flags: &[&str]) -> Result<Vec<Line>> {
        let command = Command::try_parse_from([&["submit", "--file", "f"], flags].concat()).unwrap();
        read(text, &command.submit)
    }

    #[test]
    fn each_line_is_a_task_with_its_own_id_and_the_flags_fill_in() {
        let text = "\"Hi\"\n\n{\"id\": \"b\", \"prompt\": \"Ho\", \"model\": \"n\", \"priority\": 9}\n{\"custom_id\": 7, \"text\": \"bee\"}\n";
        let lines = lines(text, &["--model", "m", "--priority", "2"]).unwrap();
        let items: Vec<_> = lines.iter().map(|line| (line.number, line.item.as_str())).collect();
        assert_eq!(items, [(1, "1"), (3, "b"), (4, "7")]);
        assert_eq!(lines[0].body, json!({ "payload": { "model": "m", "prompt": "Hi" }, "priority": 2 }));
        assert_eq!(lines[1].body, json!({ "payload": { "model": "n", "prompt": "Ho" }, "priority": 9 }));
        assert_eq!(lines[2].body["task_type"], "embedding");
    }

    #[test]
    fn a_line_at_fault_is_named() {
        for (text, wanted) in [
            ("\"Hi\"\n{", "line 2: it is not valid JSON"),
            ("7", "line 1: it is neither"),
            ("{\"id\": \"a\"}", "line 1: it has neither a 'prompt'"),
            ("{\"prompt\": \"a\", \"modle\": \"m\"}", "modle"),
            ("{\"id\": \"a\", \"prompt\": \"x\"}\n{\"id\": \"a\", \"prompt\": \"y\"}", "line 2: line 1 has the id"),
            ("{\"id\": [], \"prompt\": \"x\"}", "'id' has to be a text"),
            ("\"good\"\n{\"prompt\": 5}", "line 2: 'payload.prompt' has the wrong form"),
            ("\"\"", "line 1: 'payload.prompt' is empty"),
            ("{\"prompt\": \"x\", \"temperature\": 9}", "line 1: 'payload.temperature' has to be from 0 to 2"),
            ("{\"prompt\": \"x\", \"priority\": 11}", "line 1: 'priority' has to be from 1 to 10"),
            ("{\"prompt\": \"x\", \"timeout_seconds\": \"soon\"}", "line 1: 'timeout_seconds' has the wrong form"),
            ("{\"prompt\": \"x\", \"model\": \"no model!\"}", "is not a model name"),
            ("{\"prompt\": \"x\", \"text\": \"y\"}", "a prompt is for an inference"),
            ("{\"messages\": []}", "line 1: 'payload.messages' has to have"),
        ] {
            let error = lines(text, &[]).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
