//! `bombus bench`: how fast every backend of this machine, or every other node, runs a model.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bombus_core::chat::{ChatEvent, ChatRequest, Message, Prompt, Role, Sampling, Usage};
use bombus_infer::{Backend, BackendError, ChatStream};
use clap::Args;
use futures::StreamExt;
use indicatif::ProgressBar;
use serde::Serialize;

use super::answerer::{Answerer, Candidate, running_node};
use super::scope::ScopeArgs;
use super::{Global, output};
use crate::config::Settings;
use crate::failure::{self, Exit, Failure};
use crate::node::RunningBackends;
use crate::node_client::Refusal;
use crate::platform::StopSignals;

/// Arguments of `bombus bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The model [default: `default_model` of the configuration]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Tokens to generate in each round
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    tokens: u32,
    /// Length of the prompt, about so many tokens
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// How often it is measured; the medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// As one JSON object, with every round
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Results {
    model: String,
    /// What was asked for.
    tokens: u32,
    prompt_tokens: u32,
    backends: Vec<Measured>,
}

/// What was measured of one backend.
#[derive(Debug, Default, Serialize)]
struct Measured {
    backend: String,
    /// The model's name there.
    model: Option<String>,
    /// Time to the first answer of one token, in which the model may have been loaded.
    first_answer_ms: Option<f64>,
    /// Median time to the first token.
    first_token_ms: Option<f64>,
    /// Median speed from the first token to the last.
    tokens_per_second: Option<f64>,
    /// Why there is nothing, or no more.
    error: Option<String>,
    rounds: Vec<Round>,
}

/// One answer.
#[derive(Debug, Clone, Serialize)]
struct Round {
    prompt_tokens: u32,
    completion_tokens: u32,
    first_token_ms: f64,
    total_ms: f64,
    /// None where the tokens came too close together to measure it.
    tokens_per_second: Option<f64>,
}

/// Shortest time between the first token and the last from which a speed is told. What takes less came in a packet or two, and says how fast
/// the network is.
const GENERATING_MIN: Duration = Duration::from_millis(10);

pub(super) fn run(global: &Global, args: &BenchArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(bench(global, args, &settings))
}

async fn bench(global: &Global, args: &BenchArgs, settings: &Settings) -> Result<ExitCode> {
    let mut stop = StopSignals::listen().context("signals cannot be listened to")?;
    let answerer = find(global, args, settings).await?;
    let model = args.model.clone().unwrap_or_else(|| answerer.default_model(settings));
    let measured = tokio::select! {
        measured = measure_all(global, args, &answerer, &model) => Ok(measured),
        signal = stop.next() => Err(signal),
    };
    answerer.stop().await;
    let results = match measured {
        Ok(measured) => measured?,
        Err(signal) => {
            global.notice("stopped");
            return Ok(ExitCode::from(signal.exit_code()));
        }
    };
    if args.json {
        output::print_json(&results)?;
    } else {
        output::print(&table(&results))?;
    }
    if results.backends.iter().all(|backend| backend.rounds.is_empty()) {
        return Err(Failure::new(Exit::Unavailable, format!("no backend answered as '{model}'"))
            .hint("bombus backends shows how they are")
            .into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds who is measured: the backends of this machine, by this process, or other nodes, through the one that runs here.
async fn find(global: &Global, args: &BenchArgs, settings: &Settings) -> Result<Answerer> {
    let data_dir = global.data_dir()?;
    match running_node(&data_dir).await? {
        Some(node) if args.scope.asks_for_others() => return Ok(Answerer::Node(node)),
        Some(_) => global.notice(
            "note: a node runs; this process measures beside it, and loads a model of the embedded engine itself",
        ),
        None => args.scope.must_be_here()?,
    }
    Ok(Answerer::Here(RunningBackends::start(&settings.config, &data_dir)?))
}

async fn measure_all(global: &Global, args: &BenchArgs, answerer: &Answerer, model: &str) -> Result<Results> {
    // The lists of all backends, and not only until one is found that has the model.
    if let Answerer::Here(running) = answerer {
        running.backends().models().await;
    }
    let placement = answerer.placement(model, &args.scope).await?;
    placement.best()?;
    let mut results = Results {
        model: model.to_owned(),
        tokens: args.tokens,
        prompt_tokens: args.prompt_tokens,
        backends: Vec::new(),
    };
    let progress = Progress::new(global.quiet);
    for candidate in &placement.candidates {
        let place = match answerer {
            Answerer::Node(_) if candidate.here => continue,
            Answerer::Node(_) => {
                let node = candidate.node_id.clone().unwrap_or_default();
                Place::Node { answerer, model, scope: ScopeArgs::of_node(node) }
            }
            Answerer::Here(running) => match running.backends().named(&candidate.backend) {
                Some(named) => Place::Backend(named.backend.clone()),
                None => continue,
            },
        };
        results.backends.push(measure(args, candidate, &place, &progress).await);
    }
    progress.end();
    Ok(results)
}

/// What is measured.
enum Place<'a> {
    /// A backend in this process.
    Backend(Arc<dyn Backend>),
    /// Another node, through the one that runs here, by this name of the model.
    Node { answerer: &'a Answerer, model: &'a str, scope: ScopeArgs },
}

impl Place<'_> {
    async fn chat(&self, request: ChatRequest) -> Result<ChatStream> {
        match self {
            Self::Backend(backend) => Ok(backend.chat(request).await?),
            Self::Node { answerer, model, scope } => {
                let request = ChatRequest { model: (*model).to_owned(), ..request };
                Ok(answerer.chat(request, scope).await?.events)
            }
        }
    }
}

/// Measures one backend; what goes wrong is a part of the result.
async fn measure(args: &BenchArgs, candidate: &Candidate, place: &Place<'_>, progress: &Progress) -> Measured {
    let name = candidate.shown();
    let mut measured = Measured { backend: name.clone(), model: candidate.model.clone(), ..Measured::default() };
    let Some(there) = candidate.model.as_deref() else {
        measured.error.clone_from(&candidate.rejected);
        return measured;
    };
    let work = async |measured: &mut Measured| -> Result<()> {
        progress.show(&format!("{name}: first answer"));
        let first = answer(place, request(there, 1, 1, 0)).await?;
        measured.first_answer_ms = Some(first.total_ms);
        for round in 1..=args.rounds {
            progress.show(&format!("{name}: round {round} of {}", args.rounds));
            let request = request(there, args.prompt_tokens, args.tokens, round);
            measured.rounds.push(answer(place, request).await?);
        }
        Ok(())
    };
    if let Err(error) = work(&mut measured).await {
        measured.error = Some(failure::message_of(&error));
    }
    measured.first_token_ms = median(measured.rounds.iter().map(|round| round.first_token_ms));
    measured.tokens_per_second = median(measured.rounds.iter().filter_map(|round| round.tokens_per_second));
    measured
}

/// Words that are one token to most models.
const WORDS: [&str; 16] = [
    "the", "bee", "flies", "over", "a", "green", "field", "and", "finds", "red", "flowers", "near", "an", "old",
    "stone", "wall",
];

/// Builds a request of about so many tokens. No two rounds begin alike, so that no cache has the prompt of another round.
fn request(model: &str, prompt_tokens: u32, tokens: u32, round: u32) -> ChatRequest {
    let nonce = format!("{round} {}", std::process::id());
    let words = (0..prompt_tokens as usize).map(|at| WORDS[(at * 7 + round as usize) % WORDS.len()]);
    let text = std::iter::once(nonce.as_str()).chain(words).collect::<Vec<_>>().join(" ");
    ChatRequest {
        sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
        max_tokens: Some(tokens),
        ignore_eos: true,
        ..ChatRequest::new(model, Prompt::Chat(vec![Message::text(Role::User, text)]))
    }
}

/// Measures one answer. A backend that cannot go on past the end of an answer may end it early.
async fn answer(place: &Place<'_>, request: ChatRequest) -> Result<Round> {
    let begun = Instant::now();
    let mut events = match place.chat(request.clone()).await {
        Err(error) if cannot_go_on(&error) => place.chat(ChatRequest { ignore_eos: false, ..request }).await?,
        begun => begun?,
    };
    let (mut first, mut last, mut pieces) = (None, begun, 0_u32);
    while let Some(event) = events.next().await {
        match event? {
            ChatEvent::Delta(_) | ChatEvent::Thinking(_) | ChatEvent::ToolCall(_) => {
                last = Instant::now();
                first.get_or_insert(last);
                pieces += 1;
            }
            ChatEvent::AnsweredBy(_)
            | ChatEvent::Continued { .. }
            | ChatEvent::Truncated { .. }
            | ChatEvent::Waiting {} => {}
            ChatEvent::Done { usage, .. } => {
                return Ok(Round::new((begun, first.unwrap_or_else(Instant::now), last), pieces, usage));
            }
        }
    }
    Err(BackendError::Interrupted { reason: "the backend ended it without saying why".to_owned() }.into())
}

/// Returns whether all that is wrong is that the answer's own end cannot be passed over.
fn cannot_go_on(error: &anyhow::Error) -> bool {
    let unsupported = |refusal: &Refusal| refusal.code.as_deref() == Some("unsupported_parameter");
    matches!(error.downcast_ref(), Some(BackendError::Unsupported { param: "ignore_eos", .. }))
        || error.downcast_ref().is_some_and(unsupported)
}

impl Round {
    fn new((begun, first, last): (Instant, Instant, Instant), pieces: u32, usage: Usage) -> Self {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        // Not every server counts.
        let tokens = if usage.completion_tokens > 0 { usage.completion_tokens } else { pieces };
        let generating = last.saturating_duration_since(first);
        let is_measured = tokens > 1 && generating >= GENERATING_MIN;
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: tokens,
            first_token_ms: ms(first - begun),
            total_ms: ms(begun.elapsed()),
            tokens_per_second: is_measured.then(|| f64::from(tokens - 1) / generating.as_secs_f64()),
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[middle - 1], values[middle])),
        _ => Some(values[middle]),
    }
}

fn table(results: &Results) -> String {
    let number = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} {unit}").trim_end().to_owned())
    };
    let rows = results.backends.iter().map(|measured| {
        let tokens = median(measured.rounds.iter().map(|round| f64::from(round.completion_tokens)));
        let prompt = median(measured.rounds.iter().map(|round| f64::from(round.prompt_tokens)));
        [
            measured.backend.clone(),
            measured.model.clone().unwrap_or_else(|| "-".to_owned()),
            number(measured.tokens_per_second, ""),
            number(measured.first_token_ms, "ms"),
            number(measured.first_answer_ms, "ms"),
            prompt.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}")),
            tokens.map_or_else(|| "-".to_owned(), |count| format!("{count:.0}")),
            measured.error.clone().unwrap_or_default(),
        ]
    });
    output::table(["BACKEND", "MODEL", "TOK/S", "FIRST TOKEN", "FIRST ANSWER", "PROMPT", "TOKENS", ""], rows)
}

/// Says on stderr what is being measured: a line that changes on a terminal, lines elsewhere.
enum Progress {
    Bar(ProgressBar),
    Lines,
    Quiet,
}

impl Progress {
    fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if console::Term::stderr().is_term() {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(200));
            Self::Bar(bar)
        } else {
            Self::Lines
        }
    }

    fn show(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.set_message(text.to_owned()),
            Self::Lines => eprintln!("{text}"),
            Self::Quiet => {}
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }

    #[test]
    fn speed_counts_from_the_first_token_to_the_last() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let usage = Usage { prompt_tokens: 5, completion_tokens: 11, ..Usage::default() };
        let round = Round::new((begun, at(100), at(600)), 3, usage);
        assert_eq!((round.first_token_ms.round(), round.tokens_per_second.map(f64::round)), (100.0, Some(20.0)));
        let uncounted = Round::new((begun, at(100), at(600)), 6, Usage::default());
        assert_eq!(uncounted.tokens_per_second.map(f64::round), Some(10.0));
    }

    #[test]
    fn tokens_that_came_in_one_packet_have_no_speed() {
        let begun = Instant::now();
        let first = begun + Duration::from_millis(100);
        let usage = Usage { prompt_tokens: 5, completion_tokens: 64, ..Usage::default() };
        let round = Round::new((begun, first, first + Duration::from_micros(8)), 64, usage);
        assert_eq!((round.completion_tokens, round.tokens_per_second), (64, None));
    }

    #[test]
    fn no_two_rounds_begin_alike() {
        let text = |round| match request("m", 20, 5, round).prompt {
            Prompt::Chat(messages) => messages[0].joined_text(),
            _ => String::new(),
        };
        assert_ne!(text(1).split(' ').next(), text(2).split(' ').next());
        assert!(text(1).split(' ').count() >= 20);
    }
}
