//! What programs can ask for that no command offers: values and entries encrypted by a key that all share or by a pair of keys, and notes in
//! a manifest.

use bombus_swarm::db::Node;
use orbitdb::cbor::Value;
use orbitdb::crypt::{Algorithm, Encryption, KeyPair};
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, OpenOptions};
use serde_json::{Value as Json, json};

use super::database::Kind;
use super::of_each_release;
use super::peer::{Installed, JsHome, JsPeer};
use crate::model::eventually;

of_each_release! {
    what_is_encrypted_is_read_on_both_sides, what_a_pair_of_keys_encrypts_is_read_on_both_sides, notes_in_a_manifest_come_through
}

const KEY: [u8; 32] = [7; 32];
/// 32 bytes each, in base64.
const PUBLIC_KEY: &str = "CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=";
const PRIVATE_KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const KIND: Kind = Kind::KeyValue;

async fn pair(installed: Installed) -> (tempfile::TempDir, Node, JsHome, JsPeer) {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::builder().directory(folder.path()).listen(["/ip4/127.0.0.1/tcp/0"]).start().await.unwrap();
    let home = JsHome::new(installed);
    let peer = home.start().await;
    peer.dial(&node.listen_addresses()[0]).await;
    (folder, node, home, peer)
}

fn options() -> OpenOptions {
    OpenOptions::of(DatabaseType::KeyValue).access(Access::Everyone)
}

fn contains(block: &[u8], text: &str) -> bool {
    block.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn what_is_encrypted_is_read_on_both_sides(installed: Installed) {
    let encryption = Encryption::of_swarm_key(Algorithm::Aes256Gcm, &KEY);
    is_read_on_both_sides(installed, encryption, "secret", json!(hex::encode(KEY))).await;
}

async fn what_a_pair_of_keys_encrypts_is_read_on_both_sides(installed: Installed) {
    let pair = KeyPair { public_key: PUBLIC_KEY.to_owned(), private_key: PRIVATE_KEY.to_owned().into() };
    let told = json!({ "publicKey": PUBLIC_KEY, "privateKey": PRIVATE_KEY });
    is_read_on_both_sides(installed, Encryption::of_key_pair(&pair).unwrap(), "keyPair", told).await;
}

/// The peer is told the same secret as an option of this name.
async fn is_read_on_both_sides(installed: Installed, encryption: Encryption, option: &str, secret: Json) {
    let (_folder, node, _home, peer) = pair(installed).await;
    let encrypted = || options().encryption(encryption.clone());

    // Ours first, and theirs into it.
    let database = node.databases().create("ours", encrypted()).await.unwrap();
    let address = database.address().to_string();
    database.put("from ours", "written by us").await.unwrap();
    peer.open(json!({ "name": address, option: secret })).await;
    let theirs = async || peer.get(&address, KIND, "from ours").await == Some(json!("written by us"));
    eventually("the peer reads ours", theirs).await;
    peer.write(&address, &KIND.put("from theirs", json!({ "text": "written by them", "half": 0.5 }))).await;
    eventually("we read theirs", async || database.get("from theirs").is_some()).await;
    let expected = Value::map([("half", Value::Float(0.5)), ("text", "written by them".into())]);
    assert_eq!(*database.get("from theirs").unwrap().value, expected);
    let heads = database.head_blocks().unwrap();
    assert!(heads.iter().all(|block| !contains(block, "written by") && !contains(block, "from theirs")));
    assert!(heads.iter().all(|block| !contains(block, "next")), "not even what it follows is plain");

    // Theirs first.
    let name = json!({ "name": "theirs", "type": KIND.name(), "write": ["*"], option: secret });
    let address = peer.open(name).await;
    peer.write(&address, &KIND.put("from theirs", json!("written by them"))).await;
    let database = node.open(&address, encrypted()).await.unwrap();
    eventually("we read what was there", async || database.get("from theirs").is_some()).await;
    database.put("from ours", "written by us").await.unwrap();
    let theirs = async || peer.get(&address, KIND, "from ours").await == Some(json!("written by us"));
    eventually("the peer reads ours in theirs", theirs).await;
    peer.stop().await;
    node.stop().await.unwrap();
}

async fn notes_in_a_manifest_come_through(installed: Installed) {
    let (_folder, node, _home, peer) = pair(installed).await;
    let meta = || Value::map([("purpose", Value::from("notes")), ("version", Value::from(3_u64))]);
    let plain = json!({ "purpose": "notes", "version": 3 });

    let database = node.databases().create("ours", options().meta(meta())).await.unwrap();
    let opened = peer.done("open", json!({ "name": database.address().to_string() })).await;
    assert_eq!(opened["meta"], plain, "the peer sees what we noted");

    let name = json!({ "name": "theirs", "type": KIND.name(), "write": ["*"], "meta": plain });
    let address = peer.open(name).await;
    let database = node.open(&address, OpenOptions::default()).await.unwrap();
    assert_eq!(database.manifest().meta, Some(meta()), "and we what it noted");
    // The same description gives the same address on both sides.
    let same = node.databases().create("theirs", options().meta(meta())).await.unwrap();
    assert_eq!(same.address().to_string(), address);
    peer.stop().await;
    node.stop().await.unwrap();
}
