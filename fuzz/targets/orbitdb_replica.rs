//! A replica among peers that send anything. The input is a script: each step is a byte for what happens, one for which peer, and one for
//! which block; some steps change a byte of the block, or take bytes of the script for it.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::LazyLock,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use orbitdb::{
    cbor::Value,
    cid::Hash,
    crypt::Encryption,
    entry::{Codec, Draft, Limits, Operation},
    identity::Signer,
    key::SecretKey,
    log::Admission,
    replica::{Effect, Input, Kept, Loader, Replica, What},
    sync::{Peer, Request, SyncConfig},
};

const LOG: &str = "/orbitdb/zdpuAuCfZvikpA82uwuwAnj7gU5BY5gKonfjyjCX6B1myLUZZ";
/// What a peer can make the replica keep for later.
const PARKED_BYTES: usize = 64 << 10;

fn signer(seed: u8) -> Signer {
    let key = |seed| SecretKey::from_bytes(&[seed; 32]).expect("a key");
    Signer::new(&key(seed), &key(seed + 100))
}

fn codec() -> Codec {
    Codec::new(LOG, Encryption::default(), Limits { links: 64, ..Limits::default() })
}

fn admission() -> Admission {
    Admission::of_list([1, 2].map(signer).iter().map(|signer| signer.identity().id()))
}

fn config() -> SyncConfig {
    SyncConfig {
        parked_bytes: PARKED_BYTES,
        parked_bytes_per_peer: PARKED_BYTES / 2,
        peers: 4,
        rounds: 3,
        ..SyncConfig::default()
    }
}

/// Puts other fields into a block, signed or not.
fn changed(block: &[u8], field: &str, value: impl Into<Value>) -> Vec<u8> {
    let Ok(Value::Map(mut map)) = Value::decode(block) else { panic!("an entry is a map") };
    map.insert(field, value);
    Value::Map(map).encode().expect("it had a form")
}

/// Honest and other blocks, each after those that it follows.
static BLOCKS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let writers = [1, 2, 3].map(signer);
    let mut blocks: Vec<Vec<u8>> = writers.iter().map(|writer| writer.block().to_vec()).collect();
    let write = |codec: &Codec, writer: usize, time, next: &[&Vec<u8>]| {
        let next = next.iter().map(|block| Hash::of(block)).collect();
        let payload = Operation::put("key", time).into_payload();
        codec.write(&writers[writer], Draft { time, next, refs: vec![] }, payload).expect("it has a form").block
    };
    let codec = codec();
    let mut last = write(&codec, 0, 1, &[]);
    for time in 2..8 {
        let next = write(&codec, usize::from(time % 2 == 0), time, &[&last]);
        blocks.push(std::mem::replace(&mut last, next));
    }
    // A fork and its merge, a writer that is not admitted and what others wrote on top, a clock far ahead and what follows it, and the key
    // of another.
    let fork = write(&codec, 1, 3, &[&blocks[3]]);
    let merge = write(&codec, 0, 9, &[&last, &fork]);
    let stranger = write(&codec, 2, 10, &[&merge]);
    let on_top = write(&codec, 1, 11, &[&stranger]);
    let ahead = write(&codec, 0, 1 << 40, &[&merge]);
    let on_ahead = write(&codec, 1, (1 << 40) + 1, &[&ahead]);
    let forged = changed(&stranger, "identity", writers[0].identity().hash().to_string());
    let on_forged = write(&codec, 0, 12, &[&forged]);
    let elsewhere = Codec::new(format!("{LOG}2"), Encryption::default(), Limits::default());
    let replayed = write(&elsewhere, 0, 1, &[]);
    let on_replayed = write(&codec, 0, 2, &[&replayed]);
    let unsigned = changed(&on_top, "sig", "00");
    // An entry for an identity, what builds on it, and what follows an identity.
    let by_entry = changed(&stranger, "identity", Hash::of(&merge).to_string());
    let on_by_entry = write(&codec, 1, 11, &[&by_entry]);
    let on_identity = write(&codec, 0, 1, &[&blocks[1]]);
    let odd = changed(&on_top, "more", 1_u64);
    blocks.extend([
        last,
        fork,
        merge,
        stranger,
        on_top,
        ahead,
        forged,
        on_forged,
        replayed,
        on_replayed,
        unsigned,
        odd,
        on_ahead,
        by_entry,
        on_by_entry,
        on_identity,
    ]);
    blocks
});

static BY_NAME: LazyLock<BTreeMap<Hash, usize>> =
    LazyLock::new(|| BLOCKS.iter().enumerate().map(|(number, block)| (Hash::of(block), number)).collect());

/// What the replica under test has made known.
struct Told {
    replica: Replica,
    identities: Vec<Vec<u8>>,
    entries: Vec<Kept>,
    kept: BTreeSet<Hash>,
    asked: BTreeSet<(Peer, Hash)>,
}

impl Told {
    fn input(&mut self, now: Duration, input: Input) {
        let codec = codec();
        for effect in self.replica.on(now, input) {
            match effect {
                Effect::Store(stored) => {
                    assert_eq!(Hash::of(&stored.block), stored.hash);
                    if let What::Entry { own, position, .. } = stored.what {
                        let links = codec.read(&stored.block).expect("only entries are kept as such").links;
                        for hash in links.next.iter().chain(&links.refs) {
                            assert!(self.kept.contains(hash), "an entry is kept before what it follows");
                        }
                        assert!(own.is_none() || position.is_none(), "what is refused has no place in the order");
                        assert!(self.kept.insert(stored.hash), "an entry is kept twice");
                        self.entries.push((stored.block.to_vec(), own));
                    } else {
                        self.identities.push(stored.block.to_vec());
                    }
                }
                Effect::Request(Request::Want { peer, hashes }) => {
                    self.asked.extend(hashes.into_iter().map(|hash| (peer.clone(), hash)));
                }
                _ => {}
            }
        }
        let (parked, missing) = self.replica.sync().waiting();
        // The least that waits takes 300 bytes, and each names so many that are missing at most.
        assert!(parked <= PARKED_BYTES / 300 && missing <= PARKED_BYTES / 64, "{parked} wait for {missing}");
        assert!(self.replica.log().heads().len() <= self.replica.log().len());
    }

    /// Gives the replica every block that it asks for and that there is, until it asks for nothing more.
    fn answer_all(&mut self, now: Duration) {
        for _ in 0..BLOCKS.len() * 8 {
            let Some((peer, hash)) = self.asked.pop_first() else { break };
            let answer = match BY_NAME.get(&hash) {
                Some(number) => Input::Block(peer, BLOCKS[*number].clone()),
                None => Input::Absent(peer, hash),
            };
            self.input(now, answer);
        }
    }

    /// What was kept gives the same replica again.
    fn load_again(&self) {
        let mut loader = Loader::new(codec(), admission());
        self.identities.iter().for_each(|block| loader.identity(block));
        loader.entries(&self.entries);
        let loaded = loader.finish(config());
        assert!(loaded.log().newest_first().eq(self.replica.log().newest_first()));
        assert!(loaded.log().heads().eq(self.replica.log().heads()));
        assert_eq!(loaded.log().refused(), self.replica.log().refused());
    }
}

fn take<'a>(script: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = script.split_at(count.min(script.len()));
    *script = rest;
    taken
}

fuzz_target!(|data: &[u8]| {
    let mut script = data;
    let mut told = Told {
        replica: Replica::new(codec(), admission(), config()),
        identities: Vec::new(),
        entries: Vec::new(),
        kept: BTreeSet::new(),
        asked: BTreeSet::new(),
    };
    let mut now = Duration::from_secs(1);
    for _ in 0..64 {
        let &[kind, whom, which] = take(&mut script, 3) else { break };
        let peer = Peer::new((whom % 6).to_string());
        let block = &BLOCKS[usize::from(which) % BLOCKS.len()];
        now += Duration::from_millis(u64::from(whom) * 16);
        let input = match kind % 14 {
            0 => Input::Subscribed(peer),
            1 => Input::Unsubscribed(peer),
            2 => Input::Exchanged(peer, which % 2 == 0),
            3 => Input::Tick,
            4 => Input::Absent(peer, Hash::of(block)),
            5 => Input::Published(peer, block.clone()),
            6 => Input::Block(peer, block.clone()),
            7 => {
                let &[at, change] = take(&mut script, 2) else { break };
                let mut block = block.clone();
                let at = usize::from(at) * block.len() / 256;
                block[at] ^= change;
                Input::Published(peer, block)
            }
            // Behind the identities, since what is no entry ends a stream of heads.
            8 => Input::Heads(peer, BLOCKS[3..][..usize::from(which) % (BLOCKS.len() - 3)].concat()),
            9 => Input::Heads(peer, take(&mut script, usize::from(which)).to_vec()),
            10 => Input::Bulk(peer, BLOCKS[usize::from(which) % BLOCKS.len()..].to_vec()),
            11 => {
                let order = take(&mut script, usize::from(which) % 32);
                Input::Bulk(
                    peer,
                    order.iter().map(|number| BLOCKS[usize::from(*number) % BLOCKS.len()].clone()).collect(),
                )
            }
            12 => {
                told.answer_all(now);
                continue;
            }
            _ => {
                let signer = signer(1 + whom % 2);
                let appended = told.replica.append(&signer, Operation::put("own", u64::from(which)), 1);
                for stored in appended.map(|appended| appended.stored).unwrap_or_default() {
                    match stored.what {
                        What::Entry { own, .. } => {
                            told.kept.insert(stored.hash);
                            told.entries.push((stored.block.to_vec(), own));
                        }
                        What::Identity => told.identities.push(stored.block.to_vec()),
                    }
                }
                continue;
            }
        };
        told.input(now, input);
    }
    told.answer_all(now);
    told.load_again();
});
