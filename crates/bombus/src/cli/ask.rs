//! `bombus ask`: one question, one answer.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::sync::mpsc::{RecvError, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bombus_core::chat::{ChatEvent, ChatRequest, FinishReason, Message, Prompt, Role, Sampling, Timings, Usage};
use bombus_infer::ChatStream;
use clap::Args;
use futures::StreamExt;
use serde_json::json;

use super::{Global, output};
use crate::config::Settings;
use crate::data_dir::NodeRecord;
use crate::failure::{Exit, Failure};
use crate::node::RunningBackends;
use crate::platform::{PatientStop, StopSignal};
use crate::running::RunningNode;

mod remote;

/// Arguments of `bombus ask`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The question; several words are joined. `-` stands for stdin; what is piped in is added without it too
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    /// Leave stdin alone, as in a loop that reads its lines: while read q; do bombus ask --no-stdin "$q"; done
    #[arg(long)]
    no_stdin: bool,
    /// The model to ask [default: the node's, or `default_model` of the configuration]
    #[arg(long, short, value_name = "NAME")]
    model: Option<String>,
    /// Instructions that come before the question
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,
    /// Print one JSON object at the end, instead of the answer as it comes
    #[arg(long)]
    json: bool,
    /// Most tokens to generate
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// 0 always takes the likeliest token; more gives variety
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f32>,
    /// Makes the answer repeatable
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
}

fn temperature(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if (0.0..=2.0).contains(&value) => Ok(value),
        _ => Err("a temperature is a number from 0 to 2".to_owned()),
    }
}

pub(super) fn run(global: &Global, args: &AskArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let prompt = read_prompt(global, args)?;
    super::block_on(ask(global, args, &settings, prompt))
}

/// Joins the arguments with what is piped in: `git diff | bombus ask explain this` puts the question before the text.
fn read_prompt(global: &Global, args: &AskArgs) -> Result<String> {
    let wants_stdin = args.prompt.iter().any(|word| word == "-");
    if wants_stdin && args.no_stdin {
        return Err(
            Failure::new(Exit::Usage, "`-` reads stdin and --no-stdin leaves it alone; give one of them").into()
        );
    }
    let said = args.prompt.iter().filter(|word| *word != "-").map(String::as_str).collect::<Vec<_>>().join(" ");
    let reads_stdin = wants_stdin || !args.no_stdin && !std::io::stdin().is_terminal();
    let piped = if reads_stdin { read_stdin(global)? } else { String::new() };
    if !wants_stdin && !said.is_empty() && !piped.is_empty() {
        // Else a loop over lines would lose the rest of them to its first question without a word.
        global.notice(&format!("note: {} bytes from stdin added; --no-stdin leaves them alone", piped.len()));
    }
    let parts = [said.as_str(), piped.trim_end_matches(['\r', '\n'])];
    let prompt = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n");
    if prompt.trim().is_empty() {
        let failure = Failure::new(Exit::Usage, "there is no prompt");
        return Err(failure.hint("bombus ask \"Why is the sky blue?\", or pipe a text into bombus ask").into());
    }
    Ok(prompt)
}

/// Largest prompt on stdin, more than any model's context.
const STDIN_BYTES_MAX: u64 = 16 << 20;
/// Time after which a stdin that stays open is worth a remark.
const STDIN_PATIENCE: Duration = Duration::from_secs(2);

/// Reads stdin to its end. Where it was left open by mistake, as in many scripts, the person learns what is waited for.
fn read_stdin(global: &Global) -> Result<String> {
    let (sender, text) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = std::io::stdin().take(STDIN_BYTES_MAX + 1).read_to_end(&mut bytes);
        // A receiver that is gone has stopped waiting.
        let _ = sender.send(read.map(|_| bytes));
    });
    let read = match text.recv_timeout(STDIN_PATIENCE) {
        Err(RecvTimeoutError::Timeout) => {
            global.notice("note: reading the rest of the prompt from stdin; give --no-stdin if there is none");
            text.recv()
        }
        other => other.map_err(|_| RecvError),
    };
    let bytes = read.context("the thread that reads stdin failed")?.context("the prompt on stdin cannot be read")?;
    if bytes.len() as u64 > STDIN_BYTES_MAX {
        let message = format!("the prompt on stdin is larger than {} MiB", STDIN_BYTES_MAX >> 20);
        return Err(Failure::new(Exit::Usage, message).into());
    }
    String::from_utf8(bytes).map_err(|_| Failure::new(Exit::Usage, "the prompt on stdin is not UTF-8 text").into())
}

fn request(args: &AskArgs, model: &str, prompt: String) -> ChatRequest {
    let system = args.system.as_ref().map(|text| Message::text(Role::System, text));
    let messages = system.into_iter().chain([Message::text(Role::User, prompt)]).collect();
    ChatRequest {
        sampling: Sampling { temperature: args.temperature, seed: args.seed, ..Sampling::default() },
        max_tokens: args.max_tokens,
        ..ChatRequest::new(model, Prompt::Chat(messages))
    }
}

async fn ask(global: &Global, args: &AskArgs, settings: &Settings, prompt: String) -> Result<ExitCode> {
    let mut stop = PatientStop::listen().context("signals cannot be listened to")?;
    let data_dir = global.data_dir()?;
    let mut alone = None;
    let mut answer = Answer::new(args.json);
    let work = async {
        let node = match RunningNode::find(&data_dir).await? {
            RunningNode::Answers(record) => Some(record),
            RunningNode::Silent(record) => return Err(silent(&record).into()),
            RunningNode::None => None,
            RunningNode::Stale(reason) => {
                tracing::debug!(reason, "node.json is left over");
                None
            }
        };
        let request = request(args, &model(args, settings, node.as_ref()), prompt);
        let node_id = node.as_ref().map(|record| record.node_id.as_str());
        tracing::debug!(model.name = request.model, node.id = node_id, "asking");
        let started = match node {
            Some(record) => remote::chat(&record, data_dir.session_key(), &request).await?,
            None => local_chat(alone.insert(RunningBackends::start(&settings.config, &data_dir)?), request).await?,
        };
        answer.read(started).await
    };

    let outcome = tokio::select! {
        outcome = work => outcome,
        signal = stop.first() => Ok(Ended::Stopped(signal)),
    };
    let code = answer.finish(global, outcome);
    if let Some(backends) = alone {
        backends.stop().await;
    }
    code
}

fn silent(record: &NodeRecord) -> Failure {
    let message = format!("the node of this data directory (pid {}) does not answer at {}", record.pid, record.api);
    Failure::new(Exit::Unavailable, message).hint("bombus doctor says more; --data-dir DIR asks without that node")
}

/// A model named here wins over the node's own choice.
fn model(args: &AskArgs, settings: &Settings, node: Option<&NodeRecord>) -> String {
    let of_node = node.filter(|_| !settings.is_set("default_model")).and_then(|record| record.default_model.as_ref());
    let default = of_node.unwrap_or(&settings.config.default_model);
    args.model.clone().unwrap_or_else(|| default.to_string())
}

/// An answer that has begun.
struct Started {
    model: String,
    route: Route,
    events: ChatStream,
}

/// How an answer ended without an error.
enum Ended {
    /// All of it came.
    Whole,
    /// Nobody reads stdout any more.
    ReaderGone,
    /// The person stopped it.
    Stopped(StopSignal),
}

/// What runs the model.
#[derive(Debug, Default)]
struct Route {
    /// The node's id; none where this process runs the model itself.
    node: Option<String>,
    /// The backend's name.
    backend: String,
}

async fn local_chat(running: &RunningBackends, request: ChatRequest) -> Result<Started> {
    let (backend, info) = running.backends().find(&request.model).await?;
    let model = info.name.to_string();
    let events = backend.backend.chat(ChatRequest { model: model.clone(), ..request }).await?;
    Ok(Started { model, route: Route { node: None, backend: backend.name.clone() }, events })
}

/// Collects the answer, and prints it as it comes unless JSON is wanted.
struct Answer {
    json: bool,
    begun: Instant,
    model: String,
    route: Route,
    text: String,
    end: Option<(FinishReason, Usage, Timings)>,
}

impl Answer {
    fn new(json: bool) -> Self {
        Self {
            json,
            begun: Instant::now(),
            model: String::new(),
            route: Route::default(),
            text: String::new(),
            end: None,
        }
    }

    async fn read(&mut self, mut started: Started) -> Result<Ended> {
        self.model = started.model;
        self.route = started.route;
        while let Some(event) = started.events.next().await {
            match event? {
                ChatEvent::Delta(delta) => {
                    self.text.push_str(&delta.text);
                    if !self.json && !output::print_piece(&delta.text)? {
                        return Ok(Ended::ReaderGone);
                    }
                }
                ChatEvent::ToolCall(_) | ChatEvent::Thinking(_) | ChatEvent::Truncated { .. } => {}
                ChatEvent::Done { finish, usage, timings, .. } => {
                    self.end = Some((finish, usage, timings));
                    return Ok(Ended::Whole);
                }
            }
        }
        Err(Failure::new(Exit::Unavailable, "the answer broke off before its end").into())
    }

    /// Ends the output and gives the exit code.
    fn finish(&self, global: &Global, outcome: Result<Ended>) -> Result<ExitCode> {
        if !self.json && !self.text.is_empty() && !self.text.ends_with('\n') {
            output::print("\n")?;
        }
        let ended = outcome?;
        if self.json {
            output::print_json(&self.as_json())?;
        }
        Ok(match ended {
            Ended::Whole => {
                global.notice(&self.summary());
                ExitCode::SUCCESS
            }
            Ended::ReaderGone => ExitCode::SUCCESS,
            Ended::Stopped(signal) => {
                global.notice("stopped");
                ExitCode::from(signal.exit_code())
            }
        })
    }

    fn summary(&self) -> String {
        let runner = match &self.route.node {
            Some(node) => format!("{} of node {node}", self.route.backend),
            None => format!("{} in this process", self.route.backend),
        };
        let (_, usage, timings) = self.end.unwrap_or((FinishReason::Stop, Usage::default(), Timings::default()));
        let speed = timings.tokens_per_second(&usage).map(|speed| format!(", {speed:.1} tok/s")).unwrap_or_default();
        let seconds = self.begun.elapsed().as_secs_f64();
        format!(
            "{}, run by {runner}: {} prompt tokens, {} answer tokens{speed}, {seconds:.2} s in all",
            self.model, usage.prompt_tokens, usage.completion_tokens
        )
    }

    fn as_json(&self) -> serde_json::Value {
        let finish = match self.end {
            Some((finish, ..)) => json!(finish),
            None => json!("interrupted"),
        };
        let (_, usage, timings) = self.end.unwrap_or((FinishReason::Stop, Usage::default(), Timings::default()));
        json!({
            "model": self.model,
            "route": { "node": self.route.node, "backend": self.route.backend },
            "answer": self.text,
            "finish_reason": finish,
            "usage": usage,
            "timings": timings,
            "tokens_per_second": timings.tokens_per_second(&usage),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temperature_out_of_range_is_refused() {
        assert_eq!(temperature("0.7"), Ok(0.7));
        for bad in ["-1", "2.1", "hot", "NaN"] {
            assert!(temperature(bad).is_err(), "{bad}");
        }
    }
}
