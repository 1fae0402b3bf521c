use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Mutex;

use cid::multihash::Multihash;
use prost::Message as _;
use sha2::{Digest, Sha256};

use super::*;
use crate::bitswap::wire::{self, Block, Entry, Heard, Message, Presence, Wantlist};
use crate::bitswap::{
    Bitswap, BitswapConfig, BitswapEvent, BitswapEvents, BitswapReport, BlockStore, Cid, PROTOCOL, bitswap,
};
use crate::{Incoming, NetStream};

mod attacks;
mod exchange;

/// Longer than any test: where it is set, nothing in a test may wait for it.
const FOR_EVER_MS: u64 = 3_600_000;

fn cid_of(data: &[u8]) -> Cid {
    Cid::new_v1(0x71, Multihash::wrap(0x12, &Sha256::digest(data)).unwrap())
}

/// Makes a block of so many bytes, with a number.
fn block(number: u32, bytes: usize) -> Vec<u8> {
    let mut data = number.to_be_bytes().to_vec();
    data.resize(bytes.max(4), 7);
    data
}

/// A store in memory.
#[derive(Default)]
struct Blocks {
    blocks: Mutex<HashMap<Cid, Vec<u8>>>,
    /// Who gets nothing.
    strangers: BTreeSet<NodeId>,
}

impl Blocks {
    fn put(&self, data: Vec<u8>) -> Cid {
        let cid = cid_of(&data);
        self.blocks.lock().unwrap().insert(cid, data);
        cid
    }
}

impl BlockStore for Blocks {
    fn block(&self, peer: &NodeId, cid: &Cid) -> io::Result<Option<Vec<u8>>> {
        if self.strangers.contains(peer) {
            return Ok(None);
        }
        Ok(self.blocks.lock().unwrap().get(cid).cloned())
    }
}

/// A node that exchanges blocks.
struct Exchanging {
    node: Running,
    bitswap: Bitswap,
    events: BitswapEvents,
    store: Arc<Blocks>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Waits for answers for ever, so that nothing ends in time by itself.
fn patient() -> BitswapConfig {
    BitswapConfig { answer_ms: FOR_EVER_MS, answer_ms_max: FOR_EVER_MS, ..BitswapConfig::default() }
}

impl Exchanging {
    async fn start(number: u8) -> Self {
        Self::with(number, patient(), Blocks::default()).await
    }

    async fn with(number: u8, config: BitswapConfig, store: Blocks) -> Self {
        let node = Running::start(number, closed(7)).await;
        let store = Arc::new(store);
        let (bitswap, events, service) = bitswap(node.net.clone(), Arc::clone(&store) as _, config).unwrap();
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run(stop.clone()));
        Self { node, bitswap, events, store, stop, task }
    }

    fn id(&self) -> NodeId {
        self.node.net.node_id().clone()
    }

    async fn dial(&self, other: &Running) {
        self.node.net.dial(&other.addr()).await.unwrap();
    }

    async fn event(&mut self) -> BitswapEvent {
        timeout(LIMIT, self.events.next()).await.expect("an event in time").expect("it runs")
    }

    /// Waits for so many blocks, and that nothing else comes in between.
    async fn blocks(&mut self, count: usize) -> BTreeMap<Cid, Vec<u8>> {
        let mut blocks = BTreeMap::new();
        while blocks.len() < count {
            match self.event().await {
                BitswapEvent::Block { cid, data, .. } => assert_eq!(blocks.insert(cid, data), None, "{cid} came twice"),
                BitswapEvent::Absent { cid, peer } => panic!("{peer} has not got {cid}"),
            }
        }
        blocks
    }

    /// Waits for word that so many blocks are absent.
    async fn absences(&mut self, count: usize) -> BTreeSet<Cid> {
        let mut absent = BTreeSet::new();
        while absent.len() < count {
            match self.event().await {
                BitswapEvent::Absent { cid, .. } => assert!(absent.insert(cid), "{cid} was told twice"),
                BitswapEvent::Block { cid, .. } => panic!("{cid} came"),
            }
        }
        absent
    }

    async fn report_with(&self, wanted: impl Fn(&BitswapReport) -> bool) {
        let mut ticks = tokio::time::interval(Duration::from_millis(20));
        let shown = async {
            while !wanted(&self.bitswap.report()) {
                ticks.tick().await;
            }
        };
        timeout(LIMIT, shown).await.unwrap_or_else(|_| panic!("it stays {:?}", self.bitswap.report()));
    }
}

/// A node of the swarm that speaks the protocol by hand.
struct ByHand {
    node: Running,
    incoming: Incoming,
    stream: Option<NetStream>,
}

impl ByHand {
    async fn start(number: u8) -> Self {
        let node = Running::start(number, closed(7)).await;
        let incoming = node.net.accept(PROTOCOL).unwrap();
        Self { node, incoming, stream: None }
    }

    fn id(&self) -> NodeId {
        self.node.net.node_id().clone()
    }

    async fn stream_to(&self, other: &Exchanging) -> NetStream {
        self.node.net.dial(&other.node.addr()).await.unwrap();
        self.node.net.open_stream(&other.id(), PROTOCOL).await.unwrap()
    }

    /// Waits for the next message, over the stream that is open or the next one.
    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(stream) = &mut self.stream
                && let Some(heard) = hear(stream).await
            {
                return heard;
            }
            let (_, stream) = timeout(LIMIT, self.incoming.next()).await.expect("a stream in time").unwrap();
            self.stream = Some(stream);
        }
    }
}

async fn hear(stream: &mut NetStream) -> Option<Heard> {
    let length = timeout(LIMIT, wire::read_length(stream, 4 << 20)).await.expect("a message in time").unwrap()?;
    let body = timeout(LIMIT, wire::read_body(stream, length)).await.expect("all of it in time").unwrap();
    Some(wire::decode(&body).unwrap())
}

async fn say(stream: &mut NetStream, message: &Message) -> io::Result<()> {
    stream.write_all(&message.encode_length_delimited_to_vec()).await?;
    stream.flush().await
}

fn wants(entries: Vec<Entry>) -> Message {
    Message { wantlist: Some(Wantlist { entries, full: false }), ..Message::default() }
}

fn sending(blocks: Vec<Block>) -> Message {
    Message { payload: blocks, ..Message::default() }
}
