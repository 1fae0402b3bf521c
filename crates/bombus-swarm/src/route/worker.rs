//! Answers requests of peers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::chat::{Answerer, ChatEvent, ChatRequest, EmbedRequest, Part, Prompt, ToolChoice};
use bombus_core::identity::NodeId;
use bombus_core::model::{ModelCapability, ModelName};
use bombus_core::placement::{Need, Scope};
use bombus_infer::{BackendError, ChatStream, Route, Routed};
use bombus_net::NetStream;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::failure::Failure;
use super::slots::{Admission, Seat};
use super::wire::{Accepted, Ask, Declined, Embedded, Load, REQUEST_BYTES_MAX, Reason, Reply, VERSION, Vector};
use super::{RUN_PROTOCOL, Shared, details, share};
use crate::supervised::PartEnded;

/// Most streams at a time, those included that are about to be declined.
const STREAMS_MAX: usize = 2_048;
/// Most KiB of requests that are being read or wait, all together.
const BODIES_KIB_MAX: usize = 256 * 1024;
/// How long a requester may take to say what it wants.
const ASK_LIMIT: Duration = Duration::from_secs(10);
/// How long a whole request may take to come.
const READ_LIMIT: Duration = Duration::from_secs(300);
/// How long an answer to a question about models may take.
const QUESTION_LIMIT: Duration = Duration::from_secs(4);
/// So many KiB such a question counts for among those that are being read.
const QUESTION_KIB: u32 = 1_024;
/// The kinds of such questions.
const DETAILS: &str = "details";
const LOADED: &str = "loaded";
/// A request of more bytes than this is worth a word before all of it is there.
const LARGE_BYTES: u64 = 64 * 1024;

/// Answers all peers until `stop`, which cuts off what runs.
pub(super) async fn work_all(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut incoming = shared.net.accept(RUN_PROTOCOL)?;
    let bodies = Arc::new(Semaphore::new(BODIES_KIB_MAX));
    let mut runs = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(ended) = runs.join_next() => {
                let ended: Result<(), tokio::task::JoinError> = ended;
                if let Err(error) = ended
                    && error.is_panic()
                {
                    // Its stream was reset, so that the requester goes elsewhere.
                    tracing::error!(%error, "a request of a peer failed");
                }
            }
            stream = incoming.next(), if runs.len() < STREAMS_MAX => {
                let (peer, stream) = stream.ok_or(PartEnded::MeshEnded)?;
                let worker = Worker { shared: Arc::clone(shared), bodies: Arc::clone(&bodies), peer };
                runs.spawn(worker.serve(stream));
            }
        }
    }
}

/// Answers one request.
struct Worker {
    shared: Arc<Shared>,
    bodies: Arc<Semaphore>,
    peer: NodeId,
}

/// A request as it came.
enum Request {
    Chat(Box<ChatRequest>),
    Embed(Box<EmbedRequest>),
}

/// How a request ends that gets no answer.
enum Ended {
    /// The requester went away, or does not read.
    Gone(io::Error),
    /// It is declined.
    Declined(Reason),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl Worker {
    async fn serve(self, stream: NetStream) {
        let mut client = Client::new(stream, self.shared.config.progress_limit);
        let ended = match self.answer(&mut client).await {
            Ok(()) => Ok(()),
            Err(Ended::Declined(reason)) => {
                tracing::debug!(peer.id = %self.peer, ?reason, "a request of a peer is declined");
                client.push(&Reply::Declined(self.declined(reason)))
            }
            Err(Ended::Gone(error)) => Err(error),
        };
        let ended = match ended {
            Ok(()) => client.end().await,
            failed => failed,
        };
        if let Err(error) = ended {
            tracing::debug!(peer.id = %self.peer, %error, "a peer went away from its request");
        }
    }

    async fn answer(&self, client: &mut Client) -> Result<(), Ended> {
        let config = &self.shared.config;
        let ask: Ask = match timeout(ASK_LIMIT, client.receive()).await.map_err(io::Error::from)? {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(Ended::Declined(Reason::Malformed)),
            asked => asked?,
        };
        self.consider(&ask)?;
        if is_question(&ask.kind) {
            return self.tell(client, &ask).await;
        }
        let mut alive = interval(config.alive_every);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        alive.reset();
        if ask.bytes > LARGE_BYTES {
            client.say(&Reply::Alive {}).await?;
        }
        let kib = u32::try_from(ask.bytes.div_ceil(1024)).unwrap_or(u32::MAX).max(1);
        let body = self.bodies.try_acquire_many(kib).map_err(|_| Ended::Declined(Reason::Full))?;
        let request = self.request(client, &ask, &mut alive).await?;
        let seat = self.seat(client, &mut alive).await?;
        // While it was read or waited, the owner may have changed his mind.
        self.consider(&ask)?;
        client.say(&Reply::Accepted(Accepted { v: ask.v.min(VERSION) })).await?;
        tracing::debug!(peer.id = %self.peer, request.id = ask.id, model.name = ask.model, "a request of a peer begins");
        match request {
            Request::Chat(request) => self.chat(client, *request, body, &mut alive).await?,
            Request::Embed(request) => self.embed(client, *request, body, &mut alive).await?,
        }
        drop(seat);
        Ok(())
    }

    /// Says by its announcement alone whether a request may be taken now.
    fn consider(&self, ask: &Ask) -> Result<(), Ended> {
        let shared = &self.shared;
        let share = &shared.config.share;
        let name = match share.peers.is_empty() {
            true => String::new(),
            false => shared.swarm.peer(&self.peer).map(|peer| peer.name).unwrap_or_default(),
        };
        let declined = |reason| Err(Ended::Declined(reason));
        if let Some(reason) = share::refusal(share, shared.standing.now(), &self.peer, &name) {
            return declined(reason);
        }
        if ask.v == 0 || !(matches!(ask.kind.as_str(), "chat" | "embed") || is_question(&ask.kind)) {
            return declined(Reason::Malformed);
        }
        let Ok(model) = ModelName::parse(&ask.model) else { return declined(Reason::NotShared) };
        if !share.models.is_empty() && !share::shares_name(share, &model, &shared.backends.known()) {
            return declined(Reason::NotShared);
        }
        if ask.bytes > REQUEST_BYTES_MAX as u64 {
            return declined(Reason::TooLarge);
        }
        Ok(())
    }

    /// Answers a question about models.
    async fn tell(&self, client: &mut Client, ask: &Ask) -> Result<(), Ended> {
        let _place = self.bodies.try_acquire_many(QUESTION_KIB).map_err(|_| Ended::Declined(Reason::Full))?;
        client.push(&Reply::Accepted(Accepted { v: ask.v.min(VERSION) }))?;
        let answer = async {
            match ModelName::parse(&ask.model) {
                Ok(model) if ask.kind == DETAILS => details::of(&self.shared, &model).await,
                Ok(_) => details::loaded(&self.shared).await,
                Err(_) => Err(BackendError::ModelNotFound { model: String::new() }),
            }
        };
        let answer = tokio::select! {
            biased;
            () = client.gone() => return Err(Ended::Gone(io::ErrorKind::ConnectionReset.into())),
            answer = timeout(QUESTION_LIMIT, answer) => answer,
        };
        let answer = answer.unwrap_or(Err(BackendError::TimedOut { after: QUESTION_LIMIT }));
        client.push(&answer.unwrap_or_else(|error| Reply::Error(Failure::from(&error))))?;
        Ok(())
    }

    /// Reads the request, and says meanwhile that this node is there.
    async fn request(&self, client: &mut Client, ask: &Ask, alive: &mut Interval) -> Result<Request, Ended> {
        if self.shared.slots.is_full(&self.peer) {
            return Err(Ended::Declined(Reason::Full));
        }
        client.expect(usize::try_from(ask.bytes).unwrap_or(usize::MAX).min(REQUEST_BYTES_MAX));
        let reading = async {
            Ok::<_, Ended>(match ask.kind.as_str() {
                "chat" => Request::Chat(Box::new(read(client, alive).await?)),
                _ => Request::Embed(Box::new(read(client, alive).await?)),
            })
        };
        let request = timeout(READ_LIMIT, reading).await.map_err(io::Error::from)??;
        let model = match &request {
            Request::Chat(request) => &request.model,
            Request::Embed(request) => &request.model,
        };
        if *model == ask.model { Ok(request) } else { Err(Ended::Declined(Reason::Malformed)) }
    }

    /// Takes a slot, or waits for one.
    async fn seat(&self, client: &mut Client, alive: &mut Interval) -> Result<Seat, Ended> {
        let mut queued = match self.shared.slots.admit(&self.peer) {
            Admission::Seat(seat) => return Ok(seat),
            Admission::Full => return Err(Ended::Declined(Reason::Full)),
            Admission::Queued(queued) => queued,
        };
        client.say(&Reply::Alive {}).await?;
        let seat = timeout(self.shared.config.queue_limit, while_there(client, alive, queued.seat()));
        match seat.await {
            Ok(seat) => seat?.ok_or(Ended::Declined(Reason::Full)),
            Err(_) => Err(Ended::Declined(Reason::Full)),
        }
    }

    async fn chat(
        &self,
        client: &mut Client,
        request: ChatRequest,
        body: SemaphorePermit<'_>,
        alive: &mut Interval,
    ) -> io::Result<()> {
        let need = need_of(&request).only(share::models(&self.shared.config.share));
        let found = while_there(client, alive, self.shared.backends.route(&request.model, &need)).await?;
        let route = match found {
            Ok(route) => route,
            Err(error) => return client.push(&Reply::Error(Failure::from(&error))),
        };
        let begun = while_at_work(client, alive, || word_on(&route), route.chat(request)).await?;
        drop(body);
        let Routed { value: mut events, backend, model, .. } = match begun {
            Ok(routed) => routed,
            Err(error) => return client.push(&Reply::Error(Failure::from(&error))),
        };
        let by = Answerer { node: None, backend, model: model.to_string() };
        client.push(&ChatEvent::AnsweredBy(by))?;
        self.stream(client, &route, &mut events, alive).await
    }

    /// Hands on the events as they come: those that are ready together leave together.
    async fn stream(
        &self,
        client: &mut Client,
        route: &Route,
        events: &mut ChatStream,
        alive: &mut Interval,
    ) -> io::Result<()> {
        let mut next = events.next().now_or_never();
        loop {
            while let Some(event) = next {
                if !push_event(client, event)? {
                    return Ok(());
                }
                next = if client.is_full() { None } else { events.next().now_or_never() };
            }
            client.send().await?;
            alive.reset();
            next = Some(while_at_work(client, alive, || word_on(route), events.next()).await?);
        }
    }

    async fn embed(
        &self,
        client: &mut Client,
        request: EmbedRequest,
        body: SemaphorePermit<'_>,
        alive: &mut Interval,
    ) -> io::Result<()> {
        let shared = share::models(&self.shared.config.share);
        let need = Need::default().within(Scope::Local).only(shared);
        let found = while_there(client, alive, self.shared.backends.route(&request.model, &need)).await?;
        let route = match found {
            Ok(route) => route,
            Err(error) => return client.push(&Reply::Error(Failure::from(&error))),
        };
        let mut told = None;
        let word = || match route.last_sign() {
            sign if sign == told => Word::Alive,
            sign => {
                told = sign;
                Word::Progress
            }
        };
        let made = while_at_work(client, alive, word, route.embed(request)).await?;
        drop(body);
        match made {
            Ok(Routed { value, backend, model, .. }) => {
                for vector in value.vectors {
                    client.push(&Reply::Vector(Vector(vector)))?;
                    if client.is_full() {
                        client.send().await?;
                    }
                }
                let model = model.to_string();
                let load_ms = Some(value.load_ms).filter(|load_ms| *load_ms > 0.0);
                client.push(&Reply::Embedded(Embedded { prompt_tokens: value.prompt_tokens, load_ms, backend, model }))
            }
            Err(error) => client.push(&Reply::Error(Failure::from(&error))),
        }
    }

    fn declined(&self, reason: Reason) -> Declined {
        let state = self.shared.standing.now();
        let load = Load {
            running: state.running,
            waiting: state.waiting,
            ours: self.shared.slots.of(&self.peer),
            slots: Some(self.shared.config.slots()),
            draining: state.draining,
            paused: state.paused,
        };
        Declined { reason, message: reason.words().to_owned(), load }
    }
}

fn is_question(kind: &str) -> bool {
    matches!(kind, DETAILS | LOADED)
}

/// Gathers one event; says whether more may follow.
fn push_event(client: &mut Client, event: Option<Result<ChatEvent, BackendError>>) -> io::Result<bool> {
    match event {
        Some(Ok(event)) => {
            client.push(&event)?;
            Ok(!matches!(event, ChatEvent::Done { .. }))
        }
        Some(Err(error)) => client.push(&Reply::Error(Failure::from(&error))).map(|()| false),
        None => {
            let error = BackendError::Interrupted { reason: "the backend ended it without saying why".to_owned() };
            client.push(&Reply::Error(Failure::from(&error))).map(|()| false)
        }
    }
}

/// Reads a message, and says meanwhile that this node is there.
async fn read<T: for<'de> Deserialize<'de>>(client: &mut Client, alive: &mut Interval) -> Result<T, Ended> {
    loop {
        tokio::select! {
            biased;
            received = client.receive() => {
                return received.map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => Ended::Declined(Reason::Malformed),
                    _ => Ended::Gone(error),
                });
            }
            _ = alive.tick() => {}
        }
        client.say(&Reply::Alive {}).await?;
    }
}

/// What is said while there is nothing to hand on. The requester is patient where it is more than the first; earlier versions take all for that.
enum Word {
    /// This node is there.
    Alive,
    /// It is at work on others.
    Waiting,
    /// It has made more of what was asked for.
    Progress,
}

fn word_on(route: &Route) -> Word {
    if route.waits() { Word::Waiting } else { Word::Alive }
}

/// Waits for something, and says meanwhile that this node is there; gives up at once when the requester goes away.
async fn while_there<T>(client: &mut Client, alive: &mut Interval, what: impl Future<Output = T>) -> io::Result<T> {
    while_at_work(client, alive, || Word::Alive, what).await
}

/// Does the same, and says meanwhile how it goes on.
async fn while_at_work<T>(
    client: &mut Client,
    alive: &mut Interval,
    mut word: impl FnMut() -> Word,
    what: impl Future<Output = T>,
) -> io::Result<T> {
    let mut what = std::pin::pin!(what);
    loop {
        tokio::select! {
            biased;
            () = client.gone() => return Err(io::ErrorKind::ConnectionReset.into()),
            done = &mut what => return Ok(done),
            _ = alive.tick() => {}
        }
        match word() {
            Word::Alive => client.say(&Reply::Alive {}).await?,
            Word::Waiting => client.say(&ChatEvent::Waiting {}).await?,
            Word::Progress => client.say(&Reply::Progress {}).await?,
        }
    }
}

/// Returns what a request needs of the model, as the API does where it comes in, on this node.
pub(crate) fn need_of(request: &ChatRequest) -> Need {
    let mut need = Need::of([ModelCapability::Completion]).within(Scope::Local);
    if !request.tools.is_empty() && request.tool_choice != ToolChoice::None {
        need.capabilities.push(ModelCapability::Tools);
    }
    let is_picture = |part: &Part| matches!(part, Part::Image(_));
    let has_pictures = match &request.prompt {
        Prompt::Chat(messages) => messages.iter().flat_map(|message| &message.content).any(is_picture),
        Prompt::Raw(_) | Prompt::Tokens(_) => !request.images.is_empty(),
    };
    if has_pictures {
        need.capabilities.push(ModelCapability::Vision);
    }
    need.context_tokens = request.context_tokens;
    if let Some(resume) = &request.resume {
        need.continuation = true;
        need.weights.clone_from(&resume.sha256);
    }
    need
}
