//! One answer, as a command shows and keeps it.

use std::time::Instant;

use anyhow::Result;
use bombus_core::chat::{ChatEvent, FinishReason, Timings, Usage};
use futures::StreamExt;
use serde_json::{Value, json};

use super::answerer::{Route, Started};
use super::screen::Screen;
use crate::failure::{Exit, Failure};
use crate::platform::StopSignal;

/// An answer that comes in, or has come.
pub(super) struct Answer {
    begun: Instant,
    model: String,
    route: Route,
    text: String,
    left_out: u32,
    end: Option<(FinishReason, Usage, Timings)>,
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

impl Answer {
    /// Begins to wait for an answer.
    pub(super) fn new() -> Self {
        Self {
            begun: Instant::now(),
            model: String::new(),
            route: Route::default(),
            text: String::new(),
            left_out: 0,
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
                ChatEvent::AnsweredBy(_) | ChatEvent::Continued { .. } | ChatEvent::ToolCall(_) => true,
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

    /// Returns how many turns of the conversation the model was not told, since its context holds no more.
    pub(super) fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Says in a line what ran and what it cost.
    pub(super) fn summary(&self) -> String {
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
            "answer": self.text,
            "finish_reason": finish,
            "usage": usage,
            "timings": timings,
            "tokens_per_second": timings.tokens_per_second(&usage),
        })
    }
}
