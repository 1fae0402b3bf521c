use proptest::prelude::*;

use super::*;

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::Unsigned),
        any::<u64>().prop_map(Value::Negative),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        ".{0,12}".prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        proptest::collection::vec(any::<u8>(), 1..40).prop_map(Value::Link),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            proptest::collection::vec((".{0,6}", inner), 0..6).prop_map(Value::map),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(value in values()) {
        let bytes = value.encode().unwrap();
        prop_assert_eq!(Value::decode(&bytes).unwrap(), value);
    }

    #[test]
    fn what_is_read_is_written_to_the_same_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(value) = Value::decode(&bytes) {
            prop_assert_eq!(value.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn json_gives_the_value_back(value in values()) {
        prop_assert_eq!(Value::from_json(&value.to_json()), Ok(value));
    }

    #[test]
    fn skipping_ends_where_reading_does(value in values()) {
        let bytes = value.encode().unwrap();
        let mut reader = Reader::new(&bytes);
        reader.skip().unwrap();
        prop_assert_eq!(reader.position(), bytes.len());
    }
}

#[test]
fn numbers_are_written_as_javascript_writes_them() {
    for (number, hex) in
        [(1.0, "01"), (-0.0, "00"), (-3.0, "22"), (1.5, "fb3ff8000000000000"), (9.0e15, "1b001ff973cafa8000")]
    {
        assert_eq!(hex::encode(Value::Float(number).encode().unwrap()), hex, "{number}");
    }
    assert_eq!(hex::encode(Value::from(SAFE_INTEGER_LIMIT).encode().unwrap()), "fb4340000000000000");
    assert_eq!(Value::Float(f64::NAN).encode(), Err(EncodeError::NotFinite));
    assert_eq!(Value::from(-7_i64), Value::Negative(6));
}

#[test]
fn what_javascript_would_change_is_refused() {
    use DecodeError::{End, Form, Keys, Kind, NotShortest, Number, Trailing, Utf8};
    for (hex, error) in [
        ("", End),
        ("0000", Trailing),
        ("1800", NotShortest),
        ("190001", NotShortest),
        ("fb3ff0000000000000", Number),
        ("fb8000000000000000", Number),
        ("fb7ff8000000000000", Number),
        ("fb7ff0000000000000", Number),
        ("f93c00", Form),
        ("fa3fc00000", Form),
        ("f7", Form),
        ("f818", Form),
        ("9fff", Form),
        ("5fff", Form),
        ("a2616201616102", Keys),
        ("a2616101616102", Keys),
        ("a1016101", Keys),
        ("a26161016162", End),
        ("61ff", Utf8),
        ("c100", Form),
        ("d82a00", Kind),
        ("d82a4101", Form),
        ("9bffffffffffffffff", End),
        ("bb7fffffffffffffff", End),
        ("5b7fffffffffffffff", End),
    ] {
        let got = Value::decode(&hex::decode(hex).unwrap());
        assert_eq!(got, Err(error), "{hex}");
    }
}

#[test]
fn deep_nesting_is_refused_and_passed_over_without_recursion() {
    let nested = |levels: usize| [vec![0x81; levels], vec![0]].concat();
    assert!(Value::decode(&nested(DEPTH_MAX)).is_ok());
    assert_eq!(Value::decode(&nested(DEPTH_MAX + 1)), Err(DecodeError::TooDeep));
    let deep = nested(1_000_000);
    assert_eq!(Value::decode(&deep), Err(DecodeError::TooDeep));
    let mut reader = Reader::new(&deep);
    reader.skip().unwrap();
    assert_eq!(reader.position(), deep.len());
    let value = (0..=DEPTH_MAX).fold(Value::Null, |value, _| Value::List(vec![value]));
    assert_eq!(value.encode(), Err(EncodeError::TooDeep));
}

#[test]
fn bytes_and_links_stand_in_json_as_dag_json_writes_them() {
    let value = Value::map([("a", Value::Bytes(vec![1, 2])), ("l", Value::Link(vec![1, 0x71]))]);
    let json = value.to_json();
    assert_eq!(json, serde_json::json!({ "a": { "/": { "bytes": "AQI" } }, "l": { "/": "bafyq" } }));
    assert_eq!(Value::from_json(&json), Ok(value));
    assert_eq!(Value::from_json(&serde_json::json!({ "/": 1 })), Err(JsonError::Reserved));
}

#[test]
fn what_has_no_form_in_json_gets_one_of_its_own() {
    let large = Value::Negative(u64::MAX);
    assert_eq!(large.to_json(), serde_json::json!({ "/": { "integer": "-18446744073709551616" } }));
    assert_eq!(Value::Negative(1 << 63).to_json(), serde_json::json!({ "/": { "integer": "-9223372036854775809" } }));
    assert_eq!(Value::Negative((1 << 63) - 1).to_json(), serde_json::json!(i64::MIN));
    let map = Value::map([("/", Value::from("bafyq"))]);
    assert_eq!(map.to_json(), serde_json::json!({ "/": { "map": { "/": "bafyq" } } }));
    let nested = Value::map([("/", Value::map([("map", map.clone())]))]);
    for value in [large, Value::Negative(1 << 63), map, nested] {
        assert_eq!(Value::from_json(&value.to_json()), Ok(value));
    }
    for wrong in [
        serde_json::json!({ "/": { "integer": "-1" } }),
        serde_json::json!({ "/": { "integer": "-18446744073709551617" } }),
        serde_json::json!({ "/": { "integer": 1 } }),
        serde_json::json!({ "/": { "map": { "a": 1 } } }),
        serde_json::json!({ "/": {} }),
    ] {
        assert_eq!(Value::from_json(&wrong), Err(JsonError::Reserved), "{wrong}");
    }
}
