//! The blocks around a log, and what stands in them as text: the first byte chooses identities (`i`), manifests (`m`), access controllers
//! (`c`), names and addresses (`n`), keys and signatures (`k`).
#![no_main]

use std::{fmt::Display, str::FromStr, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use orbitdb::{
    cbor::Value,
    cid::Hash,
    identity::Identity,
    key::{PublicKey, SecretKey},
    manifest::{Address, ControllerAddress, DatabaseType, Manifest, controller_block, read_controller},
};

static KEY: LazyLock<PublicKey> = LazyLock::new(|| SecretKey::from_bytes(&[1; 32]).expect("a key").public_key());

/// Reads a text, and expects that it is written as it was read.
fn written_alike<T: FromStr + Display>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string(), text);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    match first {
        b'i' => {
            if let Ok(identity) = Identity::read(bytes) {
                assert_eq!(identity.hash(), Hash::of(bytes));
                let value = Value::decode(bytes).expect("an identity is a value");
                assert_eq!(value.get("id").and_then(Value::as_text), Some(identity.id()));
                assert_eq!(value.get("publicKey").and_then(Value::as_text), Some(&*identity.key().to_string()));
            }
        }
        b'm' => {
            if let Ok(manifest) = Manifest::read(bytes) {
                // Its name is the address: another writing would be another database.
                assert_eq!(manifest.block().as_deref(), Ok(bytes));
            }
        }
        b'c' => {
            if let Ok(list) = read_controller(bytes) {
                assert_eq!(read_controller(&controller_block(&list)), Ok(list));
            }
        }
        b'n' => {
            if let Some(hash) = Hash::from_cid(bytes) {
                assert_eq!(hash.to_cid(), bytes);
            }
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            written_alike::<Hash>(text);
            written_alike::<Address>(text);
            written_alike::<ControllerAddress>(text);
            if let Ok(r#type) = text.parse::<DatabaseType>() {
                assert_eq!(r#type.name(), text);
            }
        }
        b'k' => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Ok(key) = PublicKey::from_hex(text) {
                assert_eq!(key.to_string(), text);
            }
            let (signature, message) = text.split_at(text.floor_char_boundary(142));
            assert!(KEY.verify(message.as_bytes(), signature).is_err(), "nobody has signed anything");
        }
        _ => {}
    }
});
