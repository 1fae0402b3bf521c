//! What entries hold comes through as it was, whoever wrote it: a changed byte would be another hash, and a broken signature.

use serde_json::{Value, json};

use super::database::{Kind, Operation, Ours};
use super::peer::Installed;
use super::{Side, agree, of_each_release, pair};

of_each_release! {
    all_kinds_of_values_come_through, a_large_entry_comes_through, keys_that_are_no_texts_are_found_on_both_sides,
}

fn samples() -> Vec<(&'static str, Value)> {
    vec![
        ("nothing", Value::Null),
        ("truth", json!([true, false])),
        ("floats", json!([1.5, -0.25, 0.1, 1e300, 5e-324, -1.7976931348623157e308, 2.2250738585072014e-308])),
        // All of their digits count.
        ("long floats", json!((1..200).map(|number| f64::from(number).sqrt().exp() / 7.0).collect::<Vec<_>>())),
        (
            "whole",
            json!([0, 23, 24, 255, 256, 65535, 65536, 4_294_967_295_u64, 4_294_967_296_u64, 9_007_199_254_740_991_u64]),
        ),
        ("below zero", json!([-1, -24, -25, -256, -257, -4_294_967_297_i64, -9_007_199_254_740_991_i64])),
        // JavaScript has these as BigInt.
        ("big", json!([9_007_199_254_740_993_u64, u64::MAX, -9_007_199_254_740_993_i64, i64::MIN])),
        ("bytes", json!({ "/": { "bytes": "AAECA//+" } })),
        ("no bytes", json!({ "/": { "bytes": "" } })),
        ("empty", json!(["", [], {}, [[]], [{}]])),
        ("unicode", json!("häß 💡 \u{0} \u{7f} ﷽ 𝄞 e\u{301} \u{202e}右から左\u{202c} \"'\\ \n\t")),
        ("unicode keys", json!({ "ä": 1, "💡": 2, "": 3, "z": 4, "aa": 5, "\u{ffff}": 6 })),
        (
            "nested",
            json!({ "a": { "b": { "c": { "d": [1, [2, [3, { "e": { "/": { "bytes": "aGk" } } }]]] } } }, "aa": { "b": null } }),
        ),
        ("long", json!("0123456789abcdef".repeat(512))),
    ]
}

async fn all_kinds_of_values_come_through(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::KeyValue;
    let ours = Ours::create(swarm.member(0), "values", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    let samples = samples();
    // `null` under a key cannot be told from nothing there.
    let keyed = || samples.iter().filter(|(_, value)| !value.is_null());
    peer.open_address(&address).await;
    for (name, value) in keyed() {
        ours.write(&kind.put(&format!("ours, {name}"), value.clone())).await;
        peer.write(&address, &kind.put(&format!("theirs, {name}"), value.clone())).await;
    }
    agree("values", 2 * keyed().count(), &sides).await;
    for (name, value) in keyed() {
        for writer in ["ours", "theirs"] {
            let key = format!("{writer}, {name}");
            assert_eq!(ours.get(&key).await.as_ref(), Some(value), "{key} at ours");
            assert_eq!(peer.get(&address, kind, &key).await.as_ref(), Some(value), "{key} at theirs");
        }
    }
    assert_eq!(ours.info().await["refused"], json!({}), "nothing that a peer wrote was refused");

    // Keys of documents, and values within them.
    let documents = Ours::create(swarm.member(0), "documents", Kind::Documents, Some(&["*"])).await;
    let address = documents.address().to_owned();
    peer.open_address(&address).await;
    for (name, value) in &samples {
        documents.write(&Kind::Documents.put(&format!("ours, {name} 💡"), value.clone())).await;
        peer.write(&address, &Kind::Documents.put(&format!("theirs, {name} 💡"), value.clone())).await;
    }
    let sides = [Side::Ours(&documents), Side::Js(&peer, &address)];
    let rows = agree("documents", 2 * samples.len(), &sides).await;
    for (name, value) in &samples {
        for writer in ["ours", "theirs"] {
            let key = format!("{writer}, {name} 💡");
            let found = rows.iter().find(|row| row.key.as_ref() == Some(&key)).expect("it is there");
            assert_eq!(found.value, json!({ "_id": key, "value": value }));
        }
    }
    peer.stop().await;
    swarm.stop_all().await;
}

async fn a_large_entry_comes_through(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let kind = Kind::Documents;
    let ours = Ours::create(swarm.member(0), "large", kind, Some(&["*"])).await;
    let address = ours.address().to_owned();
    // More than one frame of the multiplexer, and all that the database has.
    let large = |letter: &str| json!(letter.repeat(40_000));
    ours.write(&kind.put("ours", large("o"))).await;
    peer.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    agree("a large head", 1, &sides).await;
    peer.write(&address, &kind.put("theirs", large("t"))).await;
    let rows = agree("two large entries", 2, &sides).await;
    assert_eq!(rows[1].value["value"], large("t"));
    peer.stop().await;
    swarm.stop_all().await;
}

async fn keys_that_are_no_texts_are_found_on_both_sides(installed: Installed) {
    let (mut swarm, _home, peer) = pair(installed).await;
    let ours = Ours::create(swarm.member(0), "numbers", Kind::Documents, Some(&["*"])).await;
    let address = ours.address().to_owned();
    peer.open_address(&address).await;
    let sides = [Side::Ours(&ours), Side::Js(&peer, &address)];
    let document = |id: &Value, by: &str| json!({ "_id": id, "by": by });
    let (of_ours, of_theirs) = ([json!(5), json!(1.5), json!(true)], [json!(6), json!(-2.5), json!("7")]);
    for id in &of_ours {
        ours.write(&Operation::Put(id.to_string(), document(id, "us"))).await;
    }
    for id in &of_theirs {
        peer.write(&address, &Operation::Put(id.to_string(), document(id, "them"))).await;
    }
    agree("documents under numbers", 6, &sides).await;
    for (id, text) in of_theirs.iter().zip(["6", "-2.5", "7"]) {
        assert_eq!(ours.get(text).await, Some(document(id, "them")), "{text} at ours");
    }
    for id in &of_ours {
        let found = peer.done("get", json!({ "address": address, "key": id })).await;
        assert_eq!(found["value"], document(id, "us"), "{id} at theirs");
        // It deletes only what it finds.
        peer.done("del", json!({ "address": address, "key": id })).await;
    }
    for text in ["6", "-2.5"] {
        ours.write(&Operation::Del(text.to_owned())).await;
    }
    let left = agree("what was not deleted", 1, &sides).await;
    assert_eq!(left[0].key.as_deref(), Some("7"));
    assert_eq!(ours.info().await["refused"], json!({}));

    // There a deletion counts only for a key of the same form.
    let values = Ours::create(swarm.member(0), "values under numbers", Kind::KeyValue, Some(&["*"])).await;
    let address = values.address().to_owned();
    peer.open_address(&address).await;
    peer.done("write", json!({ "address": address, "key": 8, "value": "eight" })).await;
    let sides = [Side::Ours(&values), Side::Js(&peer, &address)];
    agree("a value under a number", 1, &sides).await;
    values.write(&Operation::Del("8".to_owned())).await;
    agree("no value", 0, &sides).await;
    assert_eq!(peer.done("get", json!({ "address": address, "key": 8 })).await, Value::Null);
    peer.stop().await;
    swarm.stop_all().await;
}
