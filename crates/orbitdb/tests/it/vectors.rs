//! What `@orbitdb/core` 4.0.0 wrote: every block comes out of this crate again, byte by byte.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use orbitdb::{
    Access, Event, OpenOptions, OrbitDb,
    cbor::Value,
    cid::Hash,
    crypt::{Cipher, CipherError, Encryption},
    entry::{BlockError, Codec, Draft, Limits, Op, Operation, Received},
    identity::{Identity, Signer},
    index::Row,
    key::{PublicKey, SecretKey},
    log::{Admission, Joined, Log, Stamp},
    manifest::{Address, ControllerAddress, Manifest, controller_block, read_controller},
    replica::Input,
    sync::Peer,
};
use serde_json::Value as Json;

fn vectors() -> Json {
    serde_json::from_str(include_str!("../data/orbitdb.json")).unwrap()
}

fn text<'a>(json: &'a Json, pointer: &str) -> &'a str {
    json.pointer(pointer).and_then(Json::as_str).unwrap_or_else(|| panic!("{pointer} is no text"))
}

fn bytes(json: &Json, pointer: &str) -> Vec<u8> {
    hex::decode(text(json, pointer)).unwrap()
}

fn list<'a>(json: &'a Json, pointer: &str) -> &'a [Json] {
    json.pointer(pointer).and_then(Json::as_array).unwrap_or_else(|| panic!("{pointer} is no list"))
}

fn signer(vectors: &Json) -> Signer {
    let key = |pointer| SecretKey::from_bytes(&bytes(vectors, pointer).try_into().unwrap()).unwrap();
    Signer::new(&key("/identity/outerPrivateKeyHex"), &key("/identity/innerPrivateKeyHex"))
}

fn identities(vectors: &Json) -> [Identity; 2] {
    ["/identity/bytes", "/secondIdentity/bytes"].map(|pointer| Identity::read(&bytes(vectors, pointer)).unwrap())
}

/// Checks one block with its names, and that it is written to the same bytes.
fn check_block(json: &Json) {
    let block = bytes(json, "/bytes");
    let hash = Hash::of(&block);
    assert_eq!(hash.to_string(), text(json, "/hash"));
    if let Some(cid) = json.get("cidHex") {
        assert_eq!(hex::encode(hash.to_cid()), cid.as_str().unwrap());
    }
    assert_eq!(Value::decode(&block).unwrap().encode().unwrap(), block);
}

#[test]
fn identities_are_reproduced() {
    let vectors = vectors();
    check_block(&vectors["identity"]);
    check_block(&vectors["secondIdentity"]);
    let signer = signer(&vectors);
    assert_eq!(hex::encode(signer.block()), text(&vectors, "/identity/bytes"));
    let [first, second] = identities(&vectors);
    assert_eq!(&first, signer.identity());
    assert_ne!(first, second);
    for (message, key, signature) in [
        ("/identity/signedById/messageHex", "/identity/value/publicKey", "/identity/value/signatures/id"),
        ("/identity/signedByPublicKey/messageHex", "/identity/value/id", "/identity/value/signatures/publicKey"),
    ] {
        let key = PublicKey::from_hex(text(&vectors, key)).unwrap();
        key.verify(&bytes(&vectors, message), text(&vectors, signature)).unwrap();
    }
}

#[test]
fn manifests_and_controllers_are_reproduced() {
    for database in list(&vectors(), "/databases") {
        check_block(&database["manifest"]);
        let block = bytes(database, "/manifest/bytes");
        let manifest = Manifest::read(&block).unwrap();
        assert_eq!(manifest.block().unwrap(), block);
        let address = Address::new(Hash::of(&block));
        assert_eq!(address.to_string(), text(database, "/address"));
        assert_eq!(address.to_string(), text(database, "/topic"));
        assert_eq!(address.heads_protocol(), text(database, "/headsProtocol"));
        assert_eq!(manifest.controller.to_string(), text(database, "/access/address"));
        match manifest.controller {
            ControllerAddress::Ipfs(hash) => {
                check_block(&database["access"]);
                let block = bytes(database, "/access/bytes");
                assert_eq!(Hash::of(&block), hash);
                assert_eq!(controller_block(&read_controller(&block).unwrap()), block);
            }
            ControllerAddress::OrbitDb(_) => assert!(text(database, "/note").contains("orbitdb access")),
        }
    }
}

#[test]
fn entries_are_reproduced_and_hold() {
    let vectors = vectors();
    let (signer, identities) = (signer(&vectors), identities(&vectors));
    let (mut entries, mut written) = (0, 0);
    for database in list(&vectors, "/databases") {
        let codec = Codec::new(text(database, "/address"), Encryption::default(), Limits::default());
        for json in list(database, "/entries") {
            check_block(json);
            let block = bytes(json, "/bytes");
            let Received { links, entry } = codec.read(&block).unwrap();
            let entry = entry.unwrap();
            let identity = identities.iter().find(|identity| identity.hash() == entry.identity());
            entry.examine(identity).unwrap();
            let key = PublicKey::from_hex(entry.key()).unwrap();
            key.verify(&bytes(json, "/signedBytes"), text(json, "/value/sig")).unwrap();
            entries += 1;
            if identity == Some(signer.identity()) {
                let draft = Draft { time: links.time, next: links.next.clone(), refs: links.refs.clone() };
                let again = codec.write(&signer, draft, entry.payload().clone()).unwrap();
                assert_eq!(hex::encode(again.block), hex::encode(block));
                written += 1;
            }
        }
    }
    assert_eq!((entries, written), (35, 33));
}

#[test]
fn every_log_is_traversed_in_its_order_and_would_be_continued_alike() {
    let vectors = vectors();
    let identities = identities(&vectors);
    for database in list(&vectors, "/databases") {
        let codec = Codec::new(text(database, "/address"), Encryption::default(), Limits::default());
        let mut log = Log::new(Admission::Everyone);
        let mut hashes = Vec::new();
        for json in list(database, "/entries") {
            let received = codec.read(&bytes(json, "/bytes")).unwrap();
            let entry = received.entry.unwrap();
            let identity = identities.iter().find(|identity| identity.hash() == entry.identity()).unwrap();
            // A chain of one writer is continued with the same time, next and refs as JavaScript chose.
            let next = log.heads().map(|position| position.hash).collect::<Vec<_>>();
            if next == received.links.next {
                let draft = log.draft(1).unwrap();
                assert_eq!((draft.time, draft.refs), (received.links.time, received.links.refs.clone()));
            }
            let stamp = Stamp { writer: identity.key().to_bytes(), identity: identity.id().into() };
            assert!(matches!(log.join(&received.links, Ok(stamp)), Ok(Joined::Admitted(_))));
            hashes.push(text(json, "/hash").to_owned());
        }
        hashes.reverse();
        let names = |json: &[Json]| json.iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(log.newest_first().map(|position| position.hash.to_string()).collect::<Vec<_>>(), hashes);
        assert_eq!(
            log.heads().map(|position| position.hash.to_string()).collect::<Vec<_>>(),
            names(list(database, "/heads"))
        );
        if text(database, "/note").contains("fork") {
            let fork: Vec<&str> =
                list(&vectors, "/forkOrderNewestFirst").iter().map(|entry| text(entry, "/hash")).collect();
            assert_eq!(hashes[1..], fork);
        }
    }
}

/// Writes the bytes of the vectors, `{"$hex": ...}`, as DAG-JSON does.
fn dag_json(json: &Json) -> Json {
    match json {
        Json::Object(object) => match object.get("$hex").and_then(Json::as_str) {
            Some(bytes) => Value::Bytes(hex::decode(bytes).unwrap()).to_json(),
            None => object.iter().map(|(key, value)| (key.clone(), dag_json(value))).collect(),
        },
        Json::Array(list) => list.iter().map(dag_json).collect(),
        other => other.clone(),
    }
}

#[tokio::test]
async fn databases_have_the_addresses_of_javascript_and_show_what_it_wrote() {
    let vectors = vectors();
    let (orbit, _outputs) = OrbitDb::builder().signer(signer(&vectors)).build().unwrap();
    let blocks = ["/identity/bytes", "/secondIdentity/bytes"].map(|pointer| bytes(&vectors, pointer));
    let peer = Peer::new("javascript");
    for (number, database) in list(&vectors, "/databases").iter().enumerate() {
        let manifest = Manifest::read(&bytes(database, "/manifest/bytes")).unwrap();
        let access = match manifest.controller {
            ControllerAddress::Ipfs(_) => Access::Writers(read_controller(&bytes(database, "/access/bytes")).unwrap()),
            ControllerAddress::OrbitDb(_) => Access::Capabilities(vec![]),
        };
        let mut options = OpenOptions::of(manifest.r#type).access(access);
        if let Some(meta) = manifest.meta {
            options = options.meta(meta);
        }
        let opened = orbit.open(&manifest.name, options).await.unwrap();
        assert_eq!(opened.address().to_string(), text(database, "/address"), "database {number}");
        let entries = list(database, "/entries").iter().map(|entry| bytes(entry, "/bytes"));
        let mut events = opened.events();
        let bulk = blocks.iter().cloned().chain(entries).collect();
        opened.handle(Duration::ZERO, Input::Bulk(peer.clone(), bulk)).await.unwrap();
        let mut values: BTreeMap<String, Json> = BTreeMap::new();
        for entry in list(database, "/entries") {
            let Event::Update(update) = events.recv().await.unwrap() else { panic!("only updates") };
            assert_eq!(update.hash.to_string(), text(entry, "/hash"));
            let payload = &entry["value"]["payload"];
            match payload["op"].as_str() {
                Some("PUT") => drop(values.insert(text(payload, "/key").to_owned(), payload["value"].clone())),
                Some("DEL") => drop(values.remove(text(payload, "/key"))),
                _ => drop(values.insert(text(entry, "/hash").to_owned(), payload["value"].clone())),
            }
        }
        let key = |row: &Row| if row.key.is_empty() { row.hash.to_string() } else { row.key.to_string() };
        let rows = opened.all().unwrap();
        assert_eq!(rows.iter().map(key).collect::<BTreeSet<_>>(), values.keys().cloned().collect());
        for row in &rows {
            assert_eq!(row.value.to_json(), dag_json(&values[&key(row)]), "{}", key(row));
        }
    }
}

/// The cipher of the vectors, which hides nothing.
struct Xor(u8);

impl Cipher for Xor {
    fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        Ok(plain.iter().map(|byte| byte ^ self.0).collect())
    }

    fn decrypt(&self, encrypted: &[u8]) -> Result<Vec<u8>, CipherError> {
        self.encrypt(encrypted)
    }
}

/// The encryption that the vectors were made with.
fn encryption() -> Encryption {
    Encryption { data: Some(Arc::new(Xor(0x55))), replication: Some(Arc::new(Xor(0xaa))) }
}

#[test]
fn encrypted_entries_are_nested_as_in_javascript() {
    let (vectors, signer) = (vectors(), signer(&vectors()));
    let block = bytes(&vectors, "/encrypted/bytes");
    assert_eq!(Hash::of(&block).to_string(), text(&vectors, "/encrypted/hash"));
    let Value::Bytes(outer) = Value::decode(&block).unwrap() else { panic!("a byte string") };
    assert_eq!(outer, bytes(&vectors, "/encrypted/outer/$hex"));
    let inner = Value::decode(&Xor(0xaa).decrypt(&outer).unwrap()).unwrap();
    let codec = Codec::new(inner.get("id").unwrap().as_text().unwrap(), encryption(), Limits::default());
    let Received { links, entry } = codec.read(&block).unwrap();
    let entry = entry.unwrap();
    entry.examine(Some(signer.identity())).unwrap();
    let operation = codec.operation(&entry).unwrap();
    assert_eq!(operation.op, Op::Add);
    let draft = Draft { time: links.time, next: links.next, refs: links.refs };
    assert_eq!(codec.write(&signer, draft, operation.into_payload()).unwrap().block, block);
}

#[test]
fn documents_that_javascript_was_to_encrypt_are_plain_and_not_taken_for_encrypted_ones() {
    let (vectors, signer) = (vectors(), signer(&vectors()));
    let block = bytes(&vectors, "/encryptedDocuments/bytes");
    let plain = Value::decode(&block).unwrap();
    assert_eq!(vectors["encryptedDocuments"]["isByteString"], false);
    assert!(matches!(plain, Value::Map(_)));
    let log = plain.get("id").unwrap().as_text().unwrap();

    let codec = Codec::new(log, Encryption::default(), Limits::default());
    let Received { links, entry } = codec.read(&block).unwrap();
    let entry = entry.unwrap();
    entry.examine(Some(signer.identity())).unwrap();
    let operation = codec.operation(&entry).unwrap();
    assert_eq!(operation, Operation::put("secret", Value::map([("_id", "secret")])));
    let draft = Draft { time: links.time, next: links.next, refs: links.refs };
    let payload = operation.into_payload();
    assert_eq!(codec.write(&signer, draft.clone(), payload.clone()).unwrap().block, block);

    // A database here that is to be encrypted is: it writes the same otherwise, and does not take what is plain.
    let encrypted = Codec::new(log, encryption(), Limits::default());
    assert!(matches!(encrypted.read(&block), Err(BlockError::Form(_))));
    let written = encrypted.write(&signer, draft, payload).unwrap().block;
    assert!(!written.windows(6).any(|window| window == b"secret"));
    let only_data = Codec::new(log, Encryption { replication: None, ..encryption() }, Limits::default());
    assert_eq!(only_data.operation(&only_data.read(&block).unwrap().entry.unwrap()), None);
}
