//! A backend that writes a fixed text as a model does: in tokens of one byte each, with characters that are not whole yet and what may
//! become a stop text held back.

use std::collections::VecDeque;

use bombus_core::chat::output::Output;
use bombus_core::chat::{Answerer, Resume};

use super::*;

/// How a run of a [`Scribe`] ends.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum End {
    /// With its text.
    Whole,
    /// It breaks off after so many tokens of its own.
    BreakOff(usize),
    /// Nothing more comes after so many tokens of its own.
    Stall(usize),
    /// With its text, but for a minute after so many tokens of its own others are before it.
    Wait(usize),
    /// It is not reached.
    Refuse,
}

pub(super) struct Scribe {
    pub(super) writes: &'static str,
    pub(super) sha256: Option<&'static str>,
    pub(super) continues: bool,
    /// Whether it can tell what stands behind its pieces.
    pub(super) traces: bool,
    /// Time between two tokens.
    pub(super) gap: Duration,
    /// What it tells before everything else.
    pub(super) preface: Vec<ChatEvent>,
    /// How its runs end, one after the other; those that follow are whole.
    pub(super) ends: Mutex<VecDeque<End>>,
    pub(super) asked: Mutex<Vec<ChatRequest>>,
    /// Streams that are not dropped yet.
    pub(super) open: Arc<()>,
}

impl Scribe {
    pub(super) fn new(writes: &'static str, ends: impl IntoIterator<Item = End>) -> Self {
        Self {
            writes,
            sha256: Some("aa"),
            continues: true,
            traces: true,
            gap: Duration::ZERO,
            preface: Vec::new(),
            ends: Mutex::new(ends.into_iter().collect()),
            asked: Mutex::default(),
            open: Arc::new(()),
        }
    }

    pub(super) fn asked(&self) -> Vec<ChatRequest> {
        self.asked.lock().unwrap().clone()
    }

    /// Returns how many answers it is giving.
    pub(super) fn open(&self) -> usize {
        Arc::strong_count(&self.open) - 1
    }

    /// Brings the way of the answer to where another run broke off; returns the events from there and the next token.
    fn go_on(&self, output: &mut Output, resume: &Resume) -> (Vec<ChatEvent>, usize, bool) {
        let byte = |token: u32, _| vec![self.writes.as_bytes()[token as usize]];
        let followed = resume.tokens_for(self.sha256).and_then(|tokens| output.follow_tokens(resume, tokens, byte));
        if let Some(followed) = followed {
            *output = followed.output;
            return (followed.events, resume.tokens.len(), followed.stopped);
        }
        let mut followed = output.follow_text(resume);
        let next = followed.parts.iter().map(|part| part.bytes.len()).sum();
        followed.output.tell_tokens(0..u32::try_from(next).unwrap(), &mut followed.events);
        *output = followed.output;
        (followed.events, next, followed.stopped)
    }
}

#[async_trait]
impl Backend for Scribe {
    async fn models(&self) -> Result<Vec<ModelInfo>, BackendError> {
        let sha256 = self.sha256.map(str::to_owned);
        Ok(vec![ModelInfo { continues: self.continues, sha256, ..text_model("m") }])
    }

    async fn chat(&self, request: ChatRequest) -> Result<ChatStream, BackendError> {
        self.asked.lock().unwrap().push(request.clone());
        let end = self.ends.lock().unwrap().pop_front().unwrap_or(End::Whole);
        if end == End::Refuse {
            return Err(unavailable());
        }
        let mut output = Output::new(request.stop.clone(), None, request.traced && self.traces);
        let (events, next, mut stopped) = match &request.resume {
            Some(resume) => self.go_on(&mut output, resume),
            None => (Vec::new(), 0, false),
        };
        let (bytes, gap, open) = (self.writes.as_bytes(), self.gap, self.open.clone());
        let preface = self.preface.clone();
        Ok(async_stream::stream! {
            let _open = open;
            let mut events = events;
            for event in preface {
                yield Ok(event);
            }
            let (mut tokens, mut own) = (next, 0);
            while !stopped && tokens < bytes.len() && request.max_tokens.is_none_or(|max| tokens < max as usize) {
                match end {
                    End::BreakOff(after) if own == after => {
                        yield Err(BackendError::Interrupted { reason: "broken".into() });
                        return;
                    }
                    End::Stall(after) if own == after => std::future::pending().await,
                    End::Wait(after) if own == after => {
                        for _ in 0..60 {
                            yield Ok(ChatEvent::Waiting {});
                            sleep(Duration::from_secs(1)).await;
                        }
                    }
                    _ => {}
                }
                if gap > Duration::ZERO {
                    sleep(gap).await;
                }
                let token = u32::try_from(tokens).unwrap();
                stopped = output.push(Some(token), &bytes[tokens..=tokens], None, &mut events);
                (tokens, own) = (tokens + 1, own + 1);
                for event in events.drain(..) {
                    yield Ok(event);
                }
            }
            if !stopped {
                output.finish(&mut events);
            }
            for event in events.drain(..) {
                yield Ok(event);
            }
            yield Ok(done(u32::try_from(tokens).unwrap()));
        }
        .boxed())
    }

    async fn embed(&self, _: EmbedRequest) -> Result<EmbedResponse, BackendError> {
        Err(unavailable())
    }

    async fn health(&self) -> Health {
        Health::Ready
    }
}

/// What a client sees of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) text: String,
    /// Who took over.
    pub(super) continued: Vec<Answerer>,
    pub(super) completion_tokens: Option<u32>,
    pub(super) truncated: u32,
    pub(super) traced: bool,
    pub(super) error: Option<BackendError>,
}

impl Seen {
    pub(super) fn take(&mut self, item: Result<ChatEvent, BackendError>) {
        match item {
            Err(error) => self.error = Some(error),
            Ok(ChatEvent::Delta(delta)) => {
                self.traced |= delta.trace.is_some();
                self.text.push_str(&delta.text);
            }
            Ok(ChatEvent::Continued { by, .. }) => self.continued.push(by),
            Ok(ChatEvent::Done { usage, .. }) => self.completion_tokens = Some(usage.completion_tokens),
            Ok(ChatEvent::Truncated { .. }) => self.truncated += 1,
            Ok(other) => panic!("{other:?}"),
        }
    }

    /// Returns the names of the backends that took over.
    pub(super) fn takers(&self) -> Vec<&str> {
        self.continued.iter().map(|by| by.backend.as_str()).collect()
    }
}

/// Reads an answer to its end.
pub(super) async fn read(mut stream: ChatStream) -> Seen {
    let mut seen = Seen::default();
    while let Some(item) = stream.next().await {
        assert!(seen.error.is_none() && seen.completion_tokens.is_none(), "something came after the end: {item:?}");
        seen.take(item);
    }
    seen
}
