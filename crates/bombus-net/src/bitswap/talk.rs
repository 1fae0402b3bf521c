//! Talking to one peer: what it is asked for, and what it wants.

use std::io;
use std::sync::Arc;

use bombus_core::identity::NodeId;
use prost::Message as _;
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::PROTOCOL;
use super::exchange::{Exchange, Next};
use super::ledger::{Lookup, Outcome};
use super::wire::{self, Message, Wantlist};
use crate::handle::NetHandle;
use crate::stream::NetStream;

/// Up to so many bytes, a block goes to a peer that only asks whether it is here.
const SMALL_BLOCK_BYTES: usize = 1_024;

/// Talks to one peer as long as there is something to say. Ends everything with the peer when it is not reached, and if this is dropped.
pub(super) struct Talk {
    exchange: Arc<Exchange>,
    net: NetHandle,
    peer: NodeId,
    news: Arc<Notify>,
    stream: Option<NetStream>,
    is_done: bool,
}

impl Talk {
    pub(super) fn new(exchange: Arc<Exchange>, net: NetHandle, peer: NodeId, news: Arc<Notify>) -> Self {
        Self { exchange, net, peer, news, stream: None, is_done: false }
    }

    pub(super) async fn run(mut self) {
        loop {
            let said = match self.exchange.next(&self.peer, self.stream.is_some()) {
                Next::Ask(entries) => self.ask(entries).await,
                Next::Answer(lookups) => self.answer(lookups).await,
                Next::Wait(due) => {
                    self.wait(due).await;
                    Ok(())
                }
                Next::Done => {
                    self.is_done = true;
                    return;
                }
            };
            if let Err(error) = said {
                tracing::debug!(peer.id = %self.peer, %error, "no blocks can be exchanged with a peer");
                return;
            }
        }
    }

    async fn ask(&mut self, entries: Vec<wire::Entry>) -> io::Result<()> {
        let message = Message { wantlist: Some(Wantlist { entries, full: false }), ..Message::default() };
        self.say(&message).await
    }

    async fn answer(&mut self, lookups: Vec<Lookup>) -> io::Result<()> {
        let answer = self.look_up(lookups).await?;
        if !answer.message.is_empty() {
            self.say(&answer.message).await?;
        }
        self.exchange.settle(&self.peer, answer.outcomes, answer.bytes);
        Ok(())
    }

    /// Asks the store on a thread where it may block.
    async fn look_up(&mut self, lookups: Vec<Lookup>) -> io::Result<Answer> {
        // The semaphore is never closed.
        let turn = Arc::clone(&self.exchange.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let (exchange, peer) = (Arc::clone(&self.exchange), self.peer.clone());
        let looked_up = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            Answer::find(&exchange, &peer, lookups)
        });
        // Where the store panics, the peer gets nothing.
        looked_up.await.map_err(io::Error::other)
    }

    /// Waits until there is news, or until this is due; a stream that nobody uses is closed meanwhile.
    async fn wait(&mut self, due: Option<Instant>) {
        let idle = self.stream.is_some().then(|| Instant::now() + self.exchange.config.idle());
        let until = [due, idle].into_iter().flatten().min();
        tokio::select! {
            biased;
            () = self.news.notified() => return,
            () = async { sleep_until(until.unwrap_or_else(Instant::now)).await }, if until.is_some() => {}
        }
        if idle.is_some() && until == idle {
            self.close().await;
        }
    }

    async fn close(&mut self) {
        if let Some(mut stream) = self.stream.take() {
            // Where that fails or takes too long, the stream is reset; all was sent before.
            let _ = timeout(self.exchange.config.message(), stream.shutdown()).await;
        }
    }

    async fn say(&mut self, message: &Message) -> io::Result<()> {
        let bytes = message.encode_length_delimited_to_vec();
        let limit = self.exchange.config.message();
        match timeout(limit, self.send(&bytes)).await {
            Ok(said) => said,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(stream) = &mut self.stream {
            if write(stream, bytes).await.is_ok() {
                return Ok(());
            }
            // The peer may have closed it meanwhile: it gets a new one.
            self.stream = None;
        }
        let mut stream = self.net.open_stream(&self.peer, PROTOCOL).await.map_err(io::Error::other)?;
        write(&mut stream, bytes).await?;
        self.stream = Some(stream);
        Ok(())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if !self.is_done {
            self.exchange.gone(&self.peer, true);
        }
    }
}

async fn write(stream: &mut NetStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// What one message brings to a peer.
struct Answer {
    message: Message,
    outcomes: Vec<(Lookup, Outcome)>,
    /// Of blocks.
    bytes: u64,
}

impl Answer {
    /// Looks blocks up until the message is full. It blocks.
    fn find(exchange: &Exchange, peer: &NodeId, lookups: Vec<Lookup>) -> Self {
        let mut answer = Self { message: Message::default(), outcomes: Vec::with_capacity(lookups.len()), bytes: 0 };
        let full = exchange.config.message_bytes as u64;
        for lookup in lookups {
            let outcome = if answer.bytes < full { answer.add(exchange, peer, &lookup) } else { Outcome::Later };
            answer.outcomes.push((lookup, outcome));
        }
        answer
    }

    fn add(&mut self, exchange: &Exchange, peer: &NodeId, lookup: &Lookup) -> Outcome {
        let cid = &lookup.cid;
        match find(exchange, peer, lookup) {
            Some(data) if lookup.wants_block || data.len() < SMALL_BLOCK_BYTES => {
                self.bytes += data.len() as u64;
                self.message.payload.push(wire::Block::new(cid, data));
                Outcome::Sent
            }
            Some(_) => {
                self.message.presences.push(wire::Presence::new(cid, true));
                Outcome::Told
            }
            None => {
                if lookup.tell_absent {
                    self.message.presences.push(wire::Presence::new(cid, false));
                }
                Outcome::Absent
            }
        }
    }
}

/// Looks one block up.
fn find(exchange: &Exchange, peer: &NodeId, lookup: &Lookup) -> Option<Vec<u8>> {
    match exchange.store.block(peer, &lookup.cid) {
        Ok(Some(data)) if data.len() > exchange.config.block_bytes_max => {
            tracing::warn!(cid = %lookup.cid, bytes = data.len(), "a block is too large to be sent to a peer");
            None
        }
        Ok(data) => data,
        Err(error) => {
            tracing::error!(cid = %lookup.cid, %error, "a block for a peer could not be read");
            None
        }
    }
}
