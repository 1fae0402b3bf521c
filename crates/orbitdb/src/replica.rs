//! A replica: a log, its sync and its checks in one. Pure: bytes in, effects out.

mod bulk;
mod check;
mod load;
mod released;
#[cfg(test)]
mod tests;

pub(crate) use check::on_all_cores;

pub use bulk::{Examined, Examiner, Known};
pub use load::{Kept, Loader, Restored};
pub use released::{CheckedPart, Part};

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    iter,
    sync::Arc,
    time::Duration,
};

use crate::{
    cbor::{DecodeError, read::Reader},
    cid::Hash,
    entry::{BlockError, Codec, Entry, Links, Operation, Received, Refusal, WriteError},
    identity::{BLOCK_BYTES_MAX as IDENTITY_BYTES_MAX, Identity, Signer},
    log::{Admission, ClockExhausted, Joined, Log, Position, Stamp},
    sync::{Block, Kind, Offered, Peer, Request, Sync, SyncConfig},
};

/// Greatest size of what a stream of heads carries, in bytes.
pub const HEADS_BYTES_MAX: usize = 8 << 20;

/// Greatest number of heads that a stream carries. Nodes send 64 unless they are told otherwise; a byte may be an item, so that the bytes alone
/// bound little, and what is told of each fills half of what waits for a slow listener.
pub const HEADS_MAX: usize = 512;

/// How many identities are remembered, at most, of which no entry has joined; the oldest are forgotten, and asked for anew when named again.
const UNJOINED_MAX: usize = 1024;

/// What the network tells a replica.
#[derive(Clone, Debug)]
pub enum Input {
    /// A peer has the database open.
    Subscribed(Peer),
    /// A peer has closed the database, or is gone.
    Unsubscribed(Peer),
    /// A peer sent all these bytes on a stream of heads.
    Heads(Peer, Vec<u8>),
    /// A peer published the block of an entry.
    Published(Peer, Vec<u8>),
    /// A peer gave a block that it was asked for.
    Block(Peer, Vec<u8>),
    /// A peer gave many blocks, entries and identities, each after those that it follows.
    Bulk(Peer, Vec<Vec<u8>>),
    /// A peer has not got a block.
    Absent(Peer, Hash),
    /// An exchange of heads with a peer ended, well or not.
    Exchanged(Peer, bool),
    /// One that a peer began ended well.
    Answered(Peer),
    /// Time has passed.
    Tick,
}

/// What a replica asks for, or tells.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Keep a block. They come in an order in which each has what it needs.
    Store(Stored),
    /// Ask a peer for something.
    Request(Request),
    /// An entry does not count. It was stored if others build on it, and dropped otherwise.
    Refused(Hash, Refusal),
    /// A block is no part of the log; so many that follow it were dropped.
    Broken(Hash, BlockError, usize),
    /// Heads were exchanged with a peer for the first time.
    PeerJoined(Peer),
    /// A peer has closed the database, or is gone.
    PeerLeft(Peer),
}

/// A block that is to be kept.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its name.
    pub hash: Hash,
    /// Its bytes.
    pub block: Arc<[u8]>,
    /// What it is.
    pub what: What,
}

/// What a block is that is to be kept.
#[derive(Clone, Debug)]
pub enum What {
    /// The identity of a writer.
    Identity,
    /// An entry.
    Entry {
        /// What its own checks and its clock said, which holds for ever.
        own: Option<Refusal>,
        /// Where it stands in the order; none when it does not count.
        position: Option<Position>,
        /// The entry; none when its form is not right.
        entry: Option<Arc<Entry>>,
        /// Who wrote it, as write lists call them; none when its own checks do not hold.
        writer: Option<Arc<str>>,
        /// Who sent it; none for an own one.
        peer: Option<Peer>,
    },
}

/// An own entry that was appended.
#[derive(Clone, Debug)]
pub struct Appended {
    /// The entry.
    pub entry: Arc<Entry>,
    /// Its block, to be published once it is safe.
    pub block: Arc<[u8]>,
    /// What is to be kept.
    pub stored: Vec<Stored>,
}

/// Why an entry cannot be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The writer is not admitted.
    #[error("this identity may not write to the database: ask one of its admins for a grant")]
    NotAdmitted,
    /// The entry has no form.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The clock has come to its end.
    #[error(transparent)]
    Clock(#[from] ClockExhausted),
}

/// A replica of a log.
#[derive(Clone, Debug)]
pub struct Replica {
    codec: Codec,
    log: Log,
    sync: Sync,
    /// Those that are known; none for a block that is no valid identity. Shared with parts that are being checked.
    identities: Arc<HashMap<Hash, Option<Identity>>>,
    /// Blocks of those of which no entry has joined yet: strangers could make a node keep as many as they like. None for what is far too large.
    unjoined: HashMap<Hash, Option<Arc<[u8]>>>,
    /// Those that were put there, oldest first, whether or not an entry has joined since.
    unjoined_order: VecDeque<Hash>,
    /// Blocks that wait for nothing more and are to be checked yet.
    released: released::Queue,
    joined: BTreeSet<Peer>,
    refused: HashMap<Refusal, u64>,
    /// How many of them for want of a grant, when the grants changed last.
    ungranted: u64,
    broken: u64,
}

impl Replica {
    /// Makes an empty replica.
    #[must_use]
    pub fn new(codec: Codec, admission: Admission, config: SyncConfig) -> Self {
        let (log, sync) = (Log::new(admission), Sync::new(config));
        Self {
            codec,
            log,
            sync,
            identities: Arc::default(),
            unjoined: HashMap::new(),
            unjoined_order: VecDeque::new(),
            released: released::Queue::default(),
            joined: BTreeSet::new(),
            refused: HashMap::new(),
            ungranted: 0,
            broken: 0,
        }
    }

    /// Returns the log.
    #[must_use]
    pub const fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the codec.
    #[must_use]
    pub const fn codec(&self) -> &Codec {
        &self.codec
    }

    /// Returns the sync.
    #[must_use]
    pub const fn sync(&self) -> &Sync {
        &self.sync
    }

    /// Returns how often entries were dropped since it was made, by reason: refused, and with nothing that builds on them. One that comes
    /// again counts again.
    #[must_use]
    pub const fn dropped(&self) -> &HashMap<Refusal, u64> {
        &self.refused
    }

    /// Returns how many blocks came that are no part of the log.
    #[must_use]
    pub const fn broken(&self) -> u64 {
        self.broken
    }

    /// Counts the entries of others from now on. Returns with whom heads are to be exchanged for it, with peers that it is being done with as soon
    /// as that has ended; none where nothing changed.
    ///
    /// An entry may come before the grant of its writer, and is dropped then. Who sent it does not send it again by itself.
    pub fn readmit(&mut self, admission: Admission) -> Option<Vec<Peer>> {
        if !self.log.readmit(admission) {
            return None;
        }
        let ungranted = self.refused.get(&Refusal::Access).copied().unwrap_or_default();
        let is_missing = std::mem::replace(&mut self.ungranted, ungranted) != ungranted;
        Some(if is_missing { self.sync.peers().cloned().collect() } else { Vec::new() })
    }

    /// Returns the names of the identities that a stamp may come from.
    pub(crate) fn identities_of(&self, stamp: &Stamp) -> Vec<Hash> {
        let known = self.identities.iter().filter_map(|(hash, identity)| Some((hash, identity.as_ref()?)));
        let same = known.filter(|(_, known)| known.id() == &*stamp.identity && known.key().to_bytes() == stamp.writer);
        same.map(|(hash, _)| *hash).collect()
    }

    /// Appends an entry, `step` above the time of the heads.
    ///
    /// # Errors
    ///
    /// [`AppendError`] when the writer is not admitted, or the entry has no form.
    pub fn append(&mut self, signer: &Signer, operation: Operation, step: u64) -> Result<Appended, AppendError> {
        let identity = signer.identity();
        if !self.log.admission().admits(identity.id()) {
            return Err(AppendError::NotAdmitted);
        }
        let draft = self.log.draft_within(step, self.codec.limits().links)?;
        let written = self.codec.write(signer, draft, operation.into_payload())?;
        let mut stored = Vec::with_capacity(2);
        let known = Arc::make_mut(&mut self.identities);
        let is_new = known.insert(identity.hash(), Some(identity.clone())).is_none();
        if is_new || self.unjoined.remove(&identity.hash()).is_some() {
            stored.push(Stored { hash: identity.hash(), block: signer.block().into(), what: What::Identity });
        }
        let writer: Arc<str> = identity.id().into();
        let stamp = Stamp { writer: identity.key().to_bytes(), identity: Arc::clone(&writer) };
        let joined = self.log.join(&written.links, Ok(stamp)).expect("the draft names what is there");
        let position = if let Joined::Admitted(position) = joined { Some(position) } else { None };
        let (entry, block): (_, Arc<[u8]>) = (Arc::new(written.entry), written.block.into());
        let what =
            What::Entry { own: None, position, entry: Some(Arc::clone(&entry)), writer: Some(writer), peer: None };
        stored.push(Stored { hash: written.links.hash, block: Arc::clone(&block), what });
        Ok(Appended { entry, block, stored })
    }

    /// Takes an input, at a time since any one moment. Returns what is to be done.
    pub fn on(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = self.begin(now, input);
        while let Some(part) = self.part() {
            effects.extend(self.take_part(now, part.check()));
        }
        effects
    }

    /// Takes an input as [`Replica::on`] does, but leaves what it releases to [`Replica::part`] where that is much.
    pub fn begin(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Subscribed(peer) => drop(self.sync.subscribed(now, peer)),
            Input::Unsubscribed(peer) => {
                self.sync.unsubscribed(now, &peer);
                if self.joined.remove(&peer) {
                    effects.push(Effect::PeerLeft(peer));
                }
            }
            Input::Heads(peer, bytes) => self.heads(now, &peer, &bytes, &mut effects),
            Input::Published(peer, block) => drop(self.receive(now, Some(peer), block.into(), &mut effects)),
            Input::Block(peer, block) => self.block(now, peer, block.into(), &mut effects),
            Input::Bulk(peer, blocks) => {
                let mut examiner = Examiner::new(self.codec.clone(), peer);
                let examined = examiner.examine(&blocks, |blocks, identities| self.known(blocks, identities));
                self.bulk(now, examined, &mut effects);
            }
            Input::Absent(peer, hash) => self.sync.absent(now, &peer, &hash),
            Input::Exchanged(peer, worked) => {
                self.sync.exchanged(now, &peer, worked);
                if worked && self.joined.insert(peer.clone()) {
                    effects.push(Effect::PeerJoined(peer));
                }
            }
            Input::Answered(peer) => {
                if self.sync.answered(now, &peer) && self.joined.insert(peer.clone()) {
                    effects.push(Effect::PeerJoined(peer));
                }
            }
            Input::Tick => {}
        }
        self.ask(now, &mut effects);
        effects
    }

    /// Takes a block that a peer published, unless something that it follows has not joined. Returns what is to be done then.
    pub(crate) fn published(&mut self, now: Duration, peer: &Peer, block: &[u8]) -> Option<Vec<Effect>> {
        let mut effects = Vec::new();
        let hash = Hash::of(block);
        if !self.passes_over(&hash) {
            let received = self.codec.read(block);
            let lacks = |received: &Received| links_of(&received.links).any(|(hash, _)| !self.log.contains(&hash));
            if received.as_ref().is_ok_and(lacks) {
                return None;
            }
            let block = Block { hash, bytes: block.into(), peer: Some(peer.clone()), joins: true };
            self.received(now, block, received, &mut effects);
        }
        self.ask(now, &mut effects);
        Some(effects)
    }

    /// Ends an input: forgets what there is too much of, and asks for what the sync wants now.
    fn ask(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while self.unjoined_order.len() > UNJOINED_MAX
            && let Some(oldest) = self.unjoined_order.pop_front()
        {
            if self.unjoined.remove(&oldest).is_some() {
                Arc::make_mut(&mut self.identities).remove(&oldest);
            }
        }
        effects.extend(self.sync.poll(now).into_iter().map(Effect::Request));
    }

    /// Takes the bytes of a stream of heads, up to the first that is no part of the log: an honest peer has read its own by the same rules.
    fn heads(&mut self, now: Duration, peer: &Peer, bytes: &[u8], effects: &mut Vec<Effect>) {
        for (head, item) in heads_of(bytes) {
            let is_read = match item {
                Ok(()) => self.receive(now, Some(peer.clone()), head.into(), effects),
                Err(error) => {
                    self.report_broken(Hash::of(head), error.into(), 0, effects);
                    false
                }
            };
            if !is_read {
                return;
            }
        }
    }

    /// Takes a block that was asked for; what was not is passed over.
    fn block(&mut self, now: Duration, peer: Peer, bytes: Arc<[u8]>, effects: &mut Vec<Effect>) {
        let hash = Hash::of(&bytes);
        if self.sync.is_needed(&hash, Kind::Entry) {
            self.receive(now, Some(peer), bytes, effects);
        } else if self.sync.is_needed(&hash, Kind::Identity) {
            let identity = Identity::read(&bytes).ok();
            self.identity(now, hash, bytes, identity, effects);
        }
    }

    /// Takes a block that entries name as an identity, and what was read of it.
    fn identity(
        &mut self,
        now: Duration,
        hash: Hash,
        bytes: Arc<[u8]>,
        identity: Option<Identity>,
        effects: &mut Vec<Effect>,
    ) {
        if Arc::make_mut(&mut self.identities).insert(hash, identity).is_none() {
            // It is kept with the first entry that names it and joins. What is far too large is no identity, and looked at anew once it is
            // loaded.
            self.unjoined.insert(hash, (bytes.len() <= IDENTITY_BYTES_MAX).then_some(bytes));
            self.unjoined_order.push_back(hash);
        }
        let ready = self.sync.arrived(now, &hash, Kind::Identity);
        self.settle(now, ready, effects);
    }

    /// Takes a block. Returns whether it can be read as one of the log.
    fn receive(&mut self, now: Duration, peer: Option<Peer>, bytes: Arc<[u8]>, effects: &mut Vec<Effect>) -> bool {
        let hash = Hash::of(&bytes);
        if self.passes_over(&hash) {
            return true;
        }
        let received = self.codec.read(&bytes);
        let is_read = received.is_ok();
        self.received(now, Block { hash, bytes, peer, joins: true }, received, effects);
        is_read
    }

    /// Returns whether a block is known, so that nothing is to be done with it.
    fn passes_over(&mut self, hash: &Hash) -> bool {
        let is_known = self.is_entry(hash);
        if is_known {
            self.sync.forget(hash);
        }
        is_known
    }

    /// Returns whether a block is known to be an entry, whether or not it has joined.
    fn is_entry(&self, hash: &Hash) -> bool {
        self.log.contains(hash) || self.sync.is_parked(hash) || self.released.contains(hash)
    }

    /// Returns whether it is known whose identity a name stands for, or that it stands for none: no entry is one.
    fn is_judged(&self, identity: &Hash) -> bool {
        self.identities.contains_key(identity) || self.is_entry(identity)
    }

    /// Returns whether what needs a block as such has not to wait for it.
    fn is_there(&self, hash: &Hash, kind: Kind) -> bool {
        match kind {
            Kind::Entry => self.log.contains(hash) || self.released.contains(hash),
            Kind::Identity => self.is_judged(hash),
        }
    }

    /// Takes a block and what was read of it.
    fn received(
        &mut self,
        now: Duration,
        block: Block,
        received: Result<Received, BlockError>,
        effects: &mut Vec<Effect>,
    ) {
        match received {
            Ok(received) => self.consider(now, block, received, effects),
            Err(error) => {
                // Entries may wait for it as an identity, though it came among heads, or was asked for since a stranger named it as an entry.
                let is_named = self.sync.is_needed(&block.hash, Kind::Identity);
                let dropped = self.sync.broken(&block.hash);
                if dropped > 0 || !is_named {
                    self.report_broken(block.hash, error, dropped, effects);
                }
                if is_named {
                    let identity = Identity::read(&block.bytes).ok();
                    self.identity(now, block.hash, block.bytes, identity, effects);
                }
            }
        }
    }

    /// Takes note that a block is an entry: whatever names it as an identity has none, and waits for it no longer.
    fn no_identity(&mut self, now: Duration, block: &Block, effects: &mut Vec<Effect>) {
        if self.sync.is_needed(&block.hash, Kind::Identity) {
            self.identity(now, block.hash, Arc::clone(&block.bytes), None, effects);
        }
    }

    fn report_broken(&mut self, hash: Hash, error: BlockError, dropped: usize, effects: &mut Vec<Effect>) {
        self.broken += 1;
        effects.push(Effect::Broken(hash, error, dropped));
    }

    /// Decides what a block needs before it joins.
    ///
    /// One that nothing builds on must count by itself before anything is done for it, so that strangers cannot make a node fetch and keep
    /// what they like. One that others build on is needed whatever is wrong with it.
    fn consider(&mut self, now: Duration, mut block: Block, received: Received, effects: &mut Vec<Effect>) {
        self.no_identity(now, &block, effects);
        let identity = received.entry.as_ref().ok().map(Entry::identity);
        let mut needs: Vec<(Hash, Kind)> = identity.into_iter().map(|hash| (hash, Kind::Identity)).collect();
        let unknown_writer = identity.is_some_and(|hash| !self.is_judged(&hash));
        let mut stamp = None;
        if self.sync.is_needed(&block.hash, Kind::Entry) {
            needs.extend(links_of(&received.links));
        } else if unknown_writer {
            block.joins = false;
        } else {
            match self.counts(&received) {
                Ok(found) => stamp = Some(found),
                Err(refusal) => {
                    *self.refused.entry(refusal).or_default() += 1;
                    self.sync.forget(&block.hash);
                    effects.push(Effect::Refused(block.hash, refusal));
                    return;
                }
            }
            needs.extend(links_of(&received.links));
        }
        let is_identity = |hash: &Hash| self.identities.get(hash).is_some_and(Option::is_some);
        if needs.iter().any(|(hash, kind)| *kind == Kind::Entry && is_identity(hash)) {
            // No identity is an entry, so that what follows one can never join.
            self.sync.broken(&block.hash);
            return;
        }
        needs.retain(|(hash, kind)| !self.is_there(hash, *kind));
        if let (Offered::Ready, Some(block)) = self.sync.offer(now, block, &needs) {
            let hash = block.hash;
            if links_of(&received.links).any(|(link, _)| self.released.contains(&link)) {
                // It joins behind them.
                self.released.push(block);
                return;
            }
            if let Some(stamp) = stamp {
                self.join(block.bytes, block.peer, received, Ok(stamp), effects);
                let ready = self.sync.arrived(now, &hash, Kind::Entry);
                self.settle(now, ready, effects);
            } else {
                let mut ready = vec![block];
                ready.extend(self.sync.arrived(now, &hash, Kind::Entry));
                self.settle(now, ready, effects);
            }
        }
    }

    /// Checks an entry by itself and its writer by the access controller, without what it follows.
    fn counts(&self, received: &Received) -> Result<Stamp, Refusal> {
        let stamp = check::own(received, &self.identities)?;
        if self.log.admission().admits(&stamp.identity) { Ok(stamp) } else { Err(Refusal::Access) }
    }

    /// Lets blocks join that have what they need, each after those that it follows, and looks again at those that do not join yet.
    /// Those that are too many for one go are left to [`Replica::part`].
    fn settle(&mut self, now: Duration, ready: Vec<Block>, effects: &mut Vec<Effect>) {
        if ready.len() > released::PART {
            ready.into_iter().for_each(|block| self.released.push(block));
            return;
        }
        let checked = check::all(&self.codec, &self.identities, &ready);
        self.join_checked(now, ready.into_iter().zip(checked), effects);
    }

    fn join_checked(
        &mut self,
        now: Duration,
        checked: impl Iterator<Item = (Block, check::Checked)>,
        effects: &mut Vec<Effect>,
    ) {
        let mut again = Vec::new();
        for (block, checked) in checked {
            let Ok((received, stamp)) = checked else { continue };
            // The identity that it waited for may have been forgotten meanwhile, and what it follows may have to wait for one.
            if block.joins && self.is_whole(&received) {
                self.join(block.bytes, block.peer, received, stamp, effects);
            } else {
                again.push((block, received));
            }
        }
        for (block, received) in again {
            self.consider(now, Block { joins: true, ..block }, received, effects);
        }
    }

    /// Returns whether all is there that a block names.
    fn is_whole(&self, received: &Received) -> bool {
        let known_writer = received.entry.as_ref().map_or(true, |entry| self.is_judged(&entry.identity()));
        known_writer && links_of(&received.links).all(|(hash, _)| self.log.contains(&hash))
    }

    /// Lets a block join that has what it follows.
    fn join(
        &mut self,
        block: Arc<[u8]>,
        peer: Option<Peer>,
        received: Received,
        stamp: Result<Stamp, Refusal>,
        effects: &mut Vec<Effect>,
    ) {
        let writer = stamp.as_ref().ok().map(|stamp| Arc::clone(&stamp.identity));
        let hash = received.links.hash;
        let position = match self.log.join(&received.links, stamp) {
            Err(_) | Ok(Joined::Known) => return,
            Ok(Joined::Admitted(position)) => Some(position),
            Ok(Joined::Opaque(refusal)) => {
                effects.push(Effect::Refused(hash, refusal));
                None
            }
        };
        let identity = received.entry.as_ref().ok().map(Entry::identity);
        if let Some(hash) = identity
            && let Some(Some(block)) = self.unjoined.remove(&hash)
        {
            effects.push(Effect::Store(Stored { hash, block, what: What::Identity }));
        }
        let own = self.log.own_refusal(&hash);
        let what = What::Entry { own, position, entry: received.entry.ok().map(Arc::new), writer, peer };
        effects.push(Effect::Store(Stored { hash, block, what }));
    }
}

/// Takes the bytes of a stream of heads apart: blocks without anything between them, each of which knows its end. What is no such block is all
/// that is left, and the last. What is beyond the limits is not looked at; it comes with later heads.
pub(crate) fn heads_of(bytes: &[u8]) -> impl Iterator<Item = (&[u8], Result<(), DecodeError>)> {
    let mut rest = &bytes[..bytes.len().min(HEADS_BYTES_MAX)];
    let take = move || {
        if rest.is_empty() {
            return None;
        }
        let mut reader = Reader::new(rest);
        let item = reader.skip();
        let end = if item.is_ok() { reader.position() } else { rest.len() };
        let (head, behind) = rest.split_at(end);
        rest = behind;
        Some((head, item))
    };
    iter::from_fn(take).take(HEADS_MAX)
}

fn links_of(links: &Links) -> impl Iterator<Item = (Hash, Kind)> {
    links.next.iter().chain(&links.refs).map(|hash| (*hash, Kind::Entry))
}
