//! What happens in the swarm, as server-sent events that can be taken up again.

#![expect(unused_qualifications, reason = "the description of a route names types by longer paths than it needs")]

use std::convert::Infallible;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName};
use axum::response::Response;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, interval_at};
use utoipa::{IntoParams, ToSchema};

use super::mesh_of;
use super::sse::{self, ALIVE, HEARTBEAT};
use crate::app::SharedApp;
use crate::error::ApiError;
use crate::mesh::{FeedItem, Happening};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What `GET /events` asks for.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventsQuery {
    /// Kinds of events, with commas between, for example `peer:joined,peer:left`; `peer` stands for all that begin with `peer:`.
    /// Without it all come.
    kind: Option<String>,
    /// The id of the last event that is known already, or 0 for all that is kept; the header `Last-Event-ID` wins over it. Without either,
    /// events come from now on.
    after: Option<u64>,
    /// Whether the stream goes on after the events that there are already. Without following, all that is kept comes.
    #[serde(default = "yes")]
    #[param(default = true)]
    follow: bool,
}

/// An event of the stream, as readers of server-sent events take it apart.
#[derive(ToSchema)]
#[expect(dead_code, reason = "stands for the stream in the API document alone")]
pub(crate) struct SentEvent {
    /// Grows with every event; a stream is taken up again behind it. `lagged` has none.
    #[schema(required = false)]
    id: Option<String>,
    /// The kind, for example `peer:joined`, or `lagged`.
    event: String,
    /// The event as JSON; of `lagged`, how many are `missed`, where that is known.
    data: String,
}

fn yes() -> bool {
    true
}

/// Streams what happens in the swarm as server-sent events. At once and every 15 s a comment shows that the stream lives. The event
/// `lagged` says that events are missing: at the beginning, that they are no longer kept, and the stream goes on with those that are;
/// later, that the reader was too slow, and the stream ends.
#[utoipa::path(get, operation_id = "events", path = "/events", tag = "native", params(EventsQuery),
    responses(
        (status = 200, description = "What happened, event by event", body = SentEvent, content_type = "text/event-stream"),
        (status = 400, description = "A parameter or `Last-Event-ID` is not understood", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn stream(
    State(app): State<SharedApp>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::invalid_value("query", rejection.body_text()))?;
    let mesh = mesh_of(&app)?;
    let kinds = Kinds::of(query.kind.as_deref());
    let after = last_event_id(&headers)?.or(query.after).or((!query.follow).then_some(0));
    let mut feed = mesh.events(after);
    let stopping = app.stopping.clone();
    let events = async_stream::stream! {
        if query.follow {
            // The head of the answer leaves with the first bytes of its body, and clients wait for it.
            yield Ok(Bytes::from_static(ALIVE));
        }
        let mut heartbeat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let step = if query.follow {
                tokio::select! {
                    biased;
                    () = stopping.cancelled() => Step::End,
                    item = feed.next() => Step::of(item),
                    _ = heartbeat.tick() => Step::Heartbeat,
                }
            } else {
                // The runtime's budget would else look like the end of what is kept.
                let ready = tokio::task::coop::unconstrained(feed.next()).now_or_never();
                ready.map_or(Step::End, Step::of)
            };
            match step {
                Step::Event(happening) if kinds.take(&happening.kind) => yield Ok::<_, Infallible>(frame(&happening)),
                Step::Event(_) => {}
                Step::Heartbeat => yield Ok(Bytes::from_static(ALIVE)),
                Step::Lagged(missed) => yield Ok(lagged(missed)),
                Step::End => return,
            }
        }
    };
    Ok(sse::response(events))
}

enum Step {
    Event(Happening),
    Heartbeat,
    Lagged(Option<u64>),
    End,
}

impl Step {
    fn of(item: Option<FeedItem>) -> Self {
        match item {
            Some(FeedItem::Happening(happening)) => Self::Event(happening),
            Some(FeedItem::Lagged { missed }) => Self::Lagged(missed),
            None => Self::End,
        }
    }
}

/// The kinds that somebody wants; all where none is named.
struct Kinds(Vec<String>);

impl Kinds {
    fn of(list: Option<&str>) -> Self {
        let words = list.unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty());
        Self(words.map(str::to_owned).collect())
    }

    fn take(&self, kind: &str) -> bool {
        let fits = |wanted: &String| {
            let family = wanted.trim_end_matches(':');
            kind == wanted || kind.split_once(':').is_some_and(|(before, _)| before == family)
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    id.map(Some)
        .ok_or_else(|| ApiError::invalid_value("Last-Event-ID", "Last-Event-ID has to be the number of an event"))
}

fn frame(happening: &Happening) -> Bytes {
    let data = serde_json::to_string(happening).expect("plain data has a JSON form");
    // A line break in a kind would end its line; no part of this program makes one.
    let kind: String = happening.kind.chars().filter(|character| !character.is_control()).collect();
    format!("id: {}\nevent: {kind}\ndata: {data}\n\n", happening.id).into()
}

fn lagged(missed: Option<u64>) -> Bytes {
    format!("event: lagged\ndata: {}\n\n", json!({ "missed": missed })).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_taken_by_name_and_by_family() {
        for (list, kind, taken) in [
            (None, "peer:joined", true),
            (Some(""), "peer:joined", true),
            (Some("peer:joined, peer:left"), "peer:left", true),
            (Some("peer:joined"), "peer:left", false),
            (Some("peer"), "peer:left", true),
            (Some("peer:"), "peer:left", true),
            (Some("peer"), "peers:left", false),
            (Some("task"), "peer:left", false),
        ] {
            assert_eq!(Kinds::of(list).take(kind), taken, "{list:?} {kind}");
        }
    }
}
