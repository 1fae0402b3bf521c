//! `bombus ask`: one question, one answer.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::sync::mpsc::{RecvError, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use bombus_core::chat::{ChatRequest, Message, Prompt, Role};
use clap::Args;
use serde_json::json;

use super::answer::{Answer, Ended};
use super::answerer::{AnswerArgs, Answerer, Placement};
use super::screen::Screen;
use super::{Global, output};
use crate::config::Settings;
use crate::failure::{Exit, Failure};
use crate::platform::PatientStop;

/// Arguments of `bombus ask`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The question; several words are joined. `-` stands for stdin; what is piped in is added without it too
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    /// Leave stdin alone, as in a loop that reads its lines: while read q; do bombus ask --no-stdin "$q"; done
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    answer: AnswerArgs,
    /// Print one JSON object at the end, instead of the answer as it comes
    #[arg(long)]
    json: bool,
    /// Say who could answer, with scores or reasons, and who did
    #[arg(long)]
    explain: bool,
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

async fn ask(global: &Global, args: &AskArgs, settings: &Settings, prompt: String) -> Result<ExitCode> {
    let mut stop = PatientStop::listen().context("signals cannot be listened to")?;
    let data_dir = global.data_dir()?;
    let mut answerer = None;
    let mut placement = None;
    let mut answer = Answer::new();
    let mut screen = if args.json { Screen::Silent } else { Screen::plain() };
    let work = async {
        let answerer = answerer.insert(Answerer::find(settings, &data_dir).await?);
        let model = args.answer.model.clone().unwrap_or_else(|| answerer.default_model(settings));
        if args.explain {
            let found = placement.insert(answerer.placement(&model, &args.answer.scope).await?);
            if !args.json {
                explain(found);
            }
        }
        tracing::debug!(model.name = model, node.id = answerer.node_id(), "asking");
        let started = answerer.chat(request(args, model, prompt), &args.answer.scope).await?;
        let ended = answer.read(started, &mut screen).await?;
        answer.name_nodes(answerer).await;
        Ok(ended)
    };

    let outcome = tokio::select! {
        outcome = work => outcome,
        signal = stop.first() => Ok(Ended::Stopped(signal)),
    };
    let code = finish(global, args, (&answer, placement.as_ref()), &mut screen, outcome);
    if let Some(answerer) = answerer {
        answerer.stop().await;
    }
    code
}

fn request(args: &AskArgs, model: String, prompt: String) -> ChatRequest {
    let system = args.answer.system.as_ref().map(|text| Message::text(Role::System, text));
    let messages = system.into_iter().chain([Message::text(Role::User, prompt)]).collect();
    args.answer.apply(ChatRequest::new(model, Prompt::Chat(messages)))
}

/// Was asked for, so it is said even where notices are not wanted.
fn explain(placement: &Placement) {
    for line in placement.lines() {
        eprintln!("{line}");
    }
}

/// Ends the output and gives the exit code.
fn finish(
    global: &Global,
    args: &AskArgs,
    (answer, placement): (&Answer, Option<&Placement>),
    screen: &mut Screen,
    outcome: Result<Ended>,
) -> Result<ExitCode> {
    screen.end()?;
    let ended = outcome?;
    if args.json {
        let mut object = answer.as_json();
        if let Some(placement) = placement {
            object["placement"] = json!(placement.candidates);
        }
        output::print_json(&object)?;
    }
    if answer.left_out() > 0 {
        global.notice(&format!("note: {} turns were left out: the model's context holds no more", answer.left_out()));
    }
    for takeover in answer.takeovers() {
        global.notice(&format!("note: {takeover}"));
    }
    Ok(match ended {
        Ended::Whole => {
            if args.explain && !args.json {
                let route = answer.route();
                let place = if answer.is_elsewhere() { route.runner() } else { route.backend.clone() };
                eprintln!("answered by {place}{}", because(route.reason.as_deref()));
            }
            global.notice(&answer.summary());
            ExitCode::SUCCESS
        }
        Ended::ReaderGone => ExitCode::SUCCESS,
        Ended::Stopped(signal) => {
            global.notice("stopped");
            ExitCode::from(signal.exit_code())
        }
    })
}

fn because(reason: Option<&str>) -> String {
    reason.filter(|reason| !reason.is_empty()).map(|reason| format!(", because: {reason}")).unwrap_or_default()
}
