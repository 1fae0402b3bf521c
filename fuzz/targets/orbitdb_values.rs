//! Values of blocks, and the JSON in which people write them: the first byte chooses between DAG-CBOR (any) and JSON (`j`).
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbitdb::cbor::Value;

fuzz_target!(|data: &[u8]| {
    let Some((first, bytes)) = data.split_first() else { return };
    if *first == b'j' {
        let Ok(json) = serde_json::from_slice(bytes) else { return };
        let Ok(value) = Value::from_json(&json) else { return };
        // What people may write has a form that every peer reads, unless it is nested too deeply.
        let Ok(block) = value.encode() else { return };
        assert_eq!(Value::decode(&block), Ok(value));
        return;
    }
    let Ok(value) = Value::decode(bytes) else { return };
    // JavaScript writes again what it has read, and checks signatures over that.
    assert_eq!(value.encode().as_deref(), Ok(bytes), "what was read is written otherwise");
    let json = value.to_json();
    if let Ok(again) = Value::from_json(&json) {
        assert_eq!(again.to_json(), json);
    }
});
