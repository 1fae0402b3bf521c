//! What people and peers write as text: tickets, keys, ids, times.
#![no_main]

use std::fmt::Display;
use std::str::FromStr;

use bombus_core::identity::NodeId;
use bombus_core::topics::{Timestamp, Topic};
use bombus_net::membership::{OwnerKey, SwarmId, SwarmKey, Ticket};
use libfuzzer_sys::fuzz_target;

/// Reads the text, and expects that what was read is written so that it reads the same.
fn read_back<T: FromStr + Display + PartialEq>(text: &str) {
    let Ok(value) = text.parse::<T>() else { return };
    let Ok(again) = value.to_string().parse::<T>() else { panic!("it does not read what it writes: {value}") };
    assert!(again == value, "{value} reads as something else");
}

fuzz_target!(|text: &str| {
    read_back::<Ticket>(text);
    read_back::<NodeId>(text);
    read_back::<SwarmId>(text);
    read_back::<Timestamp>(text);
    if let Ok(key) = text.parse::<SwarmKey>() {
        assert!(key.to_key_file().parse::<SwarmKey>().is_ok_and(|again| again == key));
    }
    if let Ok(key) = text.parse::<OwnerKey>() {
        assert_eq!(key.id().as_bytes().len(), 32);
    }
    if let Some(topic) = Topic::parse(text, "open") {
        assert_eq!(topic.full_name("open"), text);
    }
});
