//! Entries of a log as peers send them: the first byte chooses plain ones (any), encrypted ones (`r`: the rest is what the key gives), and
//! what comes out of a decryption (`d`), which nobody can forge without the key.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use orbitdb::{
    cbor::Value,
    cid::Hash,
    crypt::{Algorithm, Cipher, CipherError, Encryption},
    entry::{Codec, Limits},
    identity::Signer,
    key::SecretKey,
};

/// The seeds are entries of this log.
const LOG: &str = "/orbitdb/zdpuAuCfZvikpA82uwuwAnj7gU5BY5gKonfjyjCX6B1myLUZZ";
const LIMITS: Limits = Limits { block_bytes: 60_000, entry_bytes: 40_000, links: 64 };

/// A cipher that hides nothing, so that what it carries is reached.
struct Open;

impl Cipher for Open {
    fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        Ok(plain.to_vec())
    }

    fn decrypt(&self, encrypted: &[u8]) -> Result<Vec<u8>, CipherError> {
        Ok(encrypted.to_vec())
    }
}

static PLAIN: LazyLock<Codec> = LazyLock::new(|| Codec::new(LOG, Encryption::default(), LIMITS));
static OPEN: LazyLock<Codec> = LazyLock::new(|| {
    Codec::new(LOG, Encryption { data: Some(Arc::new(Open)), replication: Some(Arc::new(Open)) }, LIMITS)
});
static SEALED: LazyLock<Codec> =
    LazyLock::new(|| Codec::new(LOG, Encryption::of_swarm_key(Algorithm::Aes256Gcm, &[1; 32]), LIMITS));
static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let key = |seed| SecretKey::from_bytes(&[seed; 32]).expect("a key");
    Signer::new(&key(1), &key(101))
});

fuzz_target!(|data: &[u8]| {
    let Some((first, block)) = data.split_first() else { return };
    let codec = match first {
        b'r' => &*OPEN,
        b'd' => &*SEALED,
        _ => &*PLAIN,
    };
    let Ok(received) = codec.read(block) else { return };
    assert!(block.len() <= LIMITS.block_bytes);
    assert_eq!(received.links.hash, Hash::of(block));
    let Ok(entry) = received.entry else { return };
    assert!(received.links.next.len() <= LIMITS.links && received.links.refs.len() <= LIMITS.links);
    assert_eq!((entry.hash(), entry.time()), (received.links.hash, received.links.time));
    // A peer in JavaScript reads the same entry and writes it alike; else the two would not agree on its name.
    let value = Value::decode(block).expect("an entry is a value");
    assert_eq!(value.encode().as_deref(), Ok(block));
    if let Some(fields) = value.as_map().filter(|_| *first != b'r') {
        assert_eq!(fields.get("id").and_then(Value::as_text), Some(LOG));
        assert_eq!(fields.get("next").and_then(Value::as_list).map(<[Value]>::len), Some(received.links.next.len()));
    }
    if let Ok(key) = entry.examine(Some(SIGNER.identity())) {
        assert_eq!(key, SIGNER.identity().key().to_bytes());
    }
    if let Some(operation) = codec.operation(&entry) {
        drop(operation.into_payload().encode());
    }
});
