//! One answer, as a command shows and keeps it.

use std::time::Instant;

use anyhow::Result;
use bombus_core::chat::{ChatEvent, FinishReason, Timings, Usage};
use futures::StreamExt;
use serde::Serialize;
use serde_json::{Value, json};

use super::answerer::{Answerer, Route, Started};
use super::screen::Screen;
use crate::failure::{Exit, Failure};
use crate::platform::StopSignal;
use crate::printable::one_line;

/// How a reason begins that says once more that an answer broke off.
const BROKE_OFF: &str = "the answer broke off: ";

/// An answer that comes in, or has come.
pub(super) struct Answer {
    begun: Instant,
    model: String,
    route: Route,
    /// Whether another node than the one that was asked answered.
    elsewhere: bool,
    text: String,
    left_out: u32,
    /// Who went on each time that it broke off.
    continued: Vec<Continued>,
    end: Option<(FinishReason, Usage, Timings)>,
}

/// Who went on with an answer that had broken off.
#[derive(Debug, Clone, Serialize)]
struct Continued {
    #[serde(flatten)]
    by: Route,
    model: String,
}

/// How an answer ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// All of it came.
    Whole,
    /// Nobody reads stdout any more.
    ReaderGone,
    /// The person stopped it.
    Stopped(StopSignal),
}

impl Route {
    /// Names what ran the model.
    pub(super) fn runner(&self) -> String {
        match self.node_name.as_ref().or(self.node.as_ref()) {
            Some(node) => format!("{} of node {}", one_line(&self.backend), one_line(node)),
            None => format!("{} in this process", self.backend),
        }
    }
}

impl Answer {
    /// Begins to wait for an answer.
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            model: String::new(),
            route: Route::default(),
            elsewhere: false,
            text: String::new(),
            left_out: 0,
            continued: Vec::new(),
            end: None,
        }
    }

    /// Reads an answer to its end and shows it as it comes. What came stays here if this is dropped.
    pub(super) async fn read(&mut self, mut started: Started, screen: &mut Screen) -> Result<Ended> {
        self.model = started.model;
        self.route = started.route;
        while let Some(event) = started.events.next().await {
            let goes_on = match event? {
                ChatEvent::Delta(delta) => {
                    self.text.push_str(&delta.text);
                    screen.text(&delta.text)?
                }
                ChatEvent::Thinking(thought) => screen.thought(&thought.text)?,
                ChatEvent::Truncated { messages, .. } => {
                    self.left_out = messages;
                    true
                }
                ChatEvent::Continued { by, reason } => {
                    let node = by.node.map(String::from);
                    let by = (Route { node, node_name: None, backend: by.backend, reason: Some(reason) }, by.model);
                    self.continued.push(Continued { by: by.0, model: by.1 });
                    true
                }
                ChatEvent::AnsweredBy(_) | ChatEvent::Waiting {} | ChatEvent::ToolCall(_) => true,
                ChatEvent::Done { finish, usage, timings, .. } => {
                    self.end = Some((finish, usage, timings));
                    return Ok(Ended::Whole);
                }
            };
            if !goes_on {
                return Ok(Ended::ReaderGone);
            }
        }
        Err(Failure::new(Exit::Unavailable, "the answer broke off before its end").into())
    }

    /// Returns what came so far.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Returns what ran the model.
    pub(super) fn route(&self) -> &Route {
        &self.route
    }

    /// Returns whether another node than the one that was asked answered.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.elsewhere
    }

    /// Returns how many turns of the conversation the model was not told, since its context holds no more.
    pub(super) fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Looks up what people call the nodes that answered.
    pub(super) async fn name_nodes(&mut self, answerer: &Answerer) {
        let routes = || std::iter::once(&self.route).chain(self.continued.iter().map(|continued| &continued.by));
        let ids: Vec<&str> = routes().filter_map(|route| route.node.as_deref()).collect();
        let names = answerer.names_of(&ids).await;
        self.elsewhere = self.route.node.as_deref() != answerer.node_id();
        let routes = std::iter::once(&mut self.route).chain(self.continued.iter_mut().map(|one| &mut one.by));
        for route in routes {
            route.node_name = route.node.as_ref().and_then(|node| names.get(node).cloned());
        }
    }

    /// Says, one line for each, who went on where the answer had broken off.
    pub(super) fn takeovers(&self) -> Vec<String> {
        let mut before = &self.route;
        let mut lines = Vec::new();
        for Continued { by, .. } in &self.continued {
            let reason = by.reason.as_deref().map(|reason| reason.strip_prefix(BROKE_OFF).unwrap_or(reason));
            let reason = reason.filter(|reason| !reason.is_empty());
            let because = reason.map(|reason| format!(" ({})", one_line(reason))).unwrap_or_default();
            lines.push(format!("{} broke off{because}; {} went on", before.runner(), by.runner()));
            before = by;
        }
        lines
    }

    /// Says in a line what ran and what it cost.
    pub(super) fn summary(&self) -> String {
        let last = self.continued.last().map_or(&self.route, |continued| &continued.by);
        let runner = match self.continued.len() {
            0 => last.runner(),
            _ => format!("{}, then {}", self.route.runner(), last.runner()),
        };
        let (_, usage, timings) = self.end.unwrap_or((FinishReason::Stop, Usage::default(), Timings::default()));
        let speed = timings.tokens_per_second(&usage).map(|speed| format!(", {speed:.1} tok/s")).unwrap_or_default();
        let seconds = self.begun.elapsed().as_secs_f64();
        format!(
            "{}, run by {runner}: {} prompt tokens, {} answer tokens{speed}, {seconds:.2} s in all",
            self.model, usage.prompt_tokens, usage.completion_tokens
        )
    }

    /// Describes the answer for programs.
    pub(super) fn as_json(&self) -> Value {
        let finish = match self.end {
            Some((finish, ..)) => json!(finish),
            None => json!("interrupted"),
        };
        let (_, usage, timings) = self.end.unwrap_or((FinishReason::Stop, Usage::default(), Timings::default()));
        json!({
            "model": self.model,
            "route": self.route,
            "continued": self.continued,
            "answer": self.text,
            "finish_reason": finish,
            "usage": usage,
            "timings": timings,
            "tokens_per_second": timings.tokens_per_second(&usage),
        })
    }
}
