//! The words of the library in those of the HTTP API (pure).

use bombus_core::identity::NodeId;
use bombus_http::databases::{DatabaseChange, DatabaseRow, DatabaseType, DatabasesError};
use bombus_net::membership::MembershipError;
use bombus_swarm::db::DbError;
use orbitdb::cbor::Value;
use orbitdb::cid::Hash;
use orbitdb::entry::{Op, Operation, Refusal};
use orbitdb::index::Row;
use orbitdb::key::PublicKey;
use orbitdb::replica::AppendError;
use orbitdb::{DatabaseError, Event, OpenError, Update, manifest};
use serde_json::Value as Json;

/// Returns how a database is read, as the API calls it.
pub(super) fn type_of(r#type: manifest::DatabaseType) -> DatabaseType {
    match r#type {
        manifest::DatabaseType::Documents => DatabaseType::Documents,
        manifest::DatabaseType::Events => DatabaseType::Events,
        manifest::DatabaseType::KeyValue => DatabaseType::KeyValue,
    }
}

/// Returns how a database is read, as the library calls it.
pub(super) fn library_type(r#type: DatabaseType) -> manifest::DatabaseType {
    match r#type {
        DatabaseType::Documents => manifest::DatabaseType::Documents,
        DatabaseType::Events => manifest::DatabaseType::Events,
        DatabaseType::KeyValue => manifest::DatabaseType::KeyValue,
    }
}

/// Returns a word for programs that says why an entry does not count.
pub(super) fn word_of(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Form => "form",
        Refusal::Oversize => "oversize",
        Refusal::Identity => "identity",
        Refusal::Key => "key",
        Refusal::ClockId => "clock_id",
        Refusal::Signature => "signature",
        Refusal::Clock => "clock",
        Refusal::Access => "access",
    }
}

/// Says that it could not be written down that the swarm has something in it now.
pub(super) fn unmarked(error: &MembershipError) -> DatabasesError {
    DatabasesError::Unavailable(error.to_string())
}

/// Writes a row as JSON. Those of events have no key.
pub(super) fn row_of(row: &Row, has_key: bool) -> DatabaseRow {
    let key = has_key.then(|| row.key.to_string());
    DatabaseRow { hash: row.hash.to_string(), key, value: row.value.to_json() }
}

/// Writes what happened as JSON.
pub(super) fn change_of(event: Event) -> DatabaseChange {
    match event {
        Event::Update(update) => update_of(update),
        Event::Join { peer, heads } => DatabaseChange::Join {
            node_id: peer.as_str().to_owned(),
            heads: heads.iter().map(Hash::to_string).collect(),
        },
        Event::Leave { peer } => DatabaseChange::Leave { node_id: peer.as_str().to_owned() },
        Event::Refused { hash, refusal } => DatabaseChange::Refused {
            hash: hash.to_string(),
            reason: word_of(refusal).to_owned(),
            detail: refusal.to_string(),
        },
        Event::Broken { hash, error, .. } => {
            DatabaseChange::Refused { hash: hash.to_string(), reason: "broken".to_owned(), detail: error.to_string() }
        }
        Event::Readmitted => DatabaseChange::Readmitted,
        Event::Error(error) => DatabaseChange::Error { detail: error.to_string() },
    }
}

fn update_of(update: Update) -> DatabaseChange {
    let op = |operation: &Operation| match operation.op {
        Op::Put => "put",
        Op::Del => "del",
        Op::Add => "add",
    };
    DatabaseChange::Update {
        hash: update.hash.to_string(),
        time: update.time,
        writer: update.writer.to_string(),
        op: update.operation.as_ref().map(op),
        value: update.operation.as_ref().map_or(Json::Null, |operation| operation.value.to_json()),
        key: update.operation.and_then(|operation| operation.key).map(String::from),
        node_id: update.peer.map(|peer| peer.as_str().to_owned()),
    }
}

/// Returns a field of a value; a name with dots leads into nested ones where no field has that name.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        field(value.get(first)?, rest)
    })
}

/// Returns whether a value has all these fields.
pub(super) fn fits(value: &Value, wanted: &[(String, Value)]) -> bool {
    wanted.iter().all(|(name, wanted)| field(value, name) == Some(wanted))
}

/// Refuses what can be the id of no identity: no entry would ever be by it.
pub(super) fn check_identity(param: &'static str, id: &str) -> Result<(), DatabasesError> {
    if id == "*" || PublicKey::from_hex(id).is_ok() {
        return Ok(());
    }
    let what = if NodeId::parse(id).is_ok() { "this is the id of a node, and" } else { "this is" };
    let message = format!(
        "{what} no id of an identity: 66 digits, 02... or 03..., which `bombus db list` shows on its node; `*` stands for everybody"
    );
    Err(DatabasesError::Invalid { param, message })
}

/// Says why a database did not take what was to be written.
pub(super) fn unwritten(error: DatabaseError, is_fixed: bool) -> DatabasesError {
    match error {
        DatabaseError::Append(AppendError::NotAdmitted) if is_fixed => DatabasesError::NotAdmitted(
            "this identity may not write to the database, whose writers were fixed when it was created".to_owned(),
        ),
        error => of_database(error),
    }
}

/// Says why the databases of this node did not do what was asked.
pub(super) fn refused(error: DbError) -> DatabasesError {
    let message = error.to_string();
    match error {
        DbError::Open(error) => of_open(error),
        DbError::Database(error) => of_database(error),
        DbError::NotFound(_) => DatabasesError::UnknownDatabase(message),
        DbError::Ambiguous { .. } => DatabasesError::AmbiguousDatabase(message),
        DbError::NameTaken { .. } => DatabasesError::NameTaken(message),
        DbError::Name(_) => DatabasesError::Invalid { param: "name", message },
        DbError::Reserved(_) => DatabasesError::Invalid { param: "address", message },
        DbError::Guards { .. } => DatabasesError::Invalid { param: "database", message },
        DbError::TooMany(_) => DatabasesError::TooMany(message),
        DbError::NotReached { .. } => DatabasesError::Unreachable(message),
        DbError::Stopped => DatabasesError::Unavailable(message),
        _ => DatabasesError::Failed(message),
    }
}

fn of_open(error: OpenError) -> DatabasesError {
    let message = error.to_string();
    match error {
        OpenError::Database(error) => of_database(error),
        OpenError::Type { .. } => DatabasesError::WrongType(message),
        OpenError::Manifest(_) | OpenError::Guard => DatabasesError::Invalid { param: "address", message },
        OpenError::Meta(_) => DatabasesError::Failed(message),
    }
}

/// Says why a database did not do what was asked.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(super) fn of_database(error: DatabaseError) -> DatabasesError {
    let message = error.to_string();
    match error {
        DatabaseError::Append(AppendError::NotAdmitted) => DatabasesError::NotAdmitted(message),
        DatabaseError::Append(AppendError::Write(_)) | DatabaseError::Key(_) => {
            DatabasesError::Invalid { param: "value", message }
        }
        DatabaseError::Closed => DatabasesError::Closed(message),
        DatabaseError::Type(_) => DatabasesError::WrongType(message),
        DatabaseError::NotFound(_) => DatabasesError::Invalid { param: "query", message },
        DatabaseError::Fixed => DatabasesError::FixedWriters(message),
        DatabaseError::NotGranted { .. } => DatabasesError::NotGranted(message),
        DatabaseError::Append(AppendError::Clock(_)) | DatabaseError::Storage(_) | DatabaseError::Manifest(_) => {
            DatabasesError::Failed(message)
        }
    }
}

#[cfg(test)]
mod tests {
    use orbitdb::entry::BlockError;
    use orbitdb::storage::StorageError;
    use orbitdb::sync::Peer;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_happens_is_told_in_the_words_of_the_api() {
        let hash = Hash::of(b"an entry");
        let (peer, of_storage) = (Peer::new("12D3KooW"), StorageError::InUse("space".to_owned()));
        let broken = BlockError::Size;
        let (detail, of_block, why) = (of_storage.to_string(), broken.to_string(), Refusal::Signature.to_string());
        for (event, told) in [
            (
                Event::Join { peer: peer.clone(), heads: vec![hash] },
                json!({ "event": "join", "node_id": "12D3KooW", "heads": [hash.to_string()] }),
            ),
            (Event::Leave { peer }, json!({ "event": "leave", "node_id": "12D3KooW" })),
            (
                Event::Refused { hash, refusal: Refusal::Signature },
                json!({ "event": "refused", "hash": hash.to_string(), "reason": "signature", "detail": why }),
            ),
            (
                Event::Broken { hash, error: broken, dropped: 2 },
                json!({ "event": "refused", "hash": hash.to_string(), "reason": "broken", "detail": of_block }),
            ),
            (Event::Readmitted, json!({ "event": "readmitted" })),
            (Event::Error(of_storage), json!({ "event": "error", "detail": detail })),
        ] {
            assert_eq!(serde_json::to_value(change_of(event)).unwrap(), told);
        }
    }

    #[test]
    fn a_name_with_dots_leads_into_nested_fields_unless_a_field_has_it() {
        let json = json!({ "a": { "b": { "c": 1 } }, "a.b": 2, "x": [1] });
        let value = Value::from_json(&json).unwrap();
        for (name, wanted) in
            [("a.b.c", Some(1_u64)), ("a.b", Some(2)), ("a.b.d", None), ("x.0", None), ("", None), (".", None)]
        {
            assert_eq!(field(&value, name), wanted.map(Value::from).as_ref(), "{name}");
        }
    }

    #[test]
    fn conditions_are_compared_as_values() {
        let value = Value::from_json(&json!({ "n": 100, "b": { "/": { "bytes": "AQID" } } })).unwrap();
        let fits = |name: &str, json: &str| {
            let json: Json = serde_json::from_str(json).unwrap();
            fits(&value, &[(name.to_owned(), Value::from_json(&json).unwrap())])
        };
        assert!(fits("n", "100") && fits("n", "1e2") && fits("n", "100.0") && !fits("n", "\"100\""));
        assert!(fits("b", "{\"/\": {\"bytes\": \"AQID\"}}") && !fits("b./.bytes", "\"AQID\""), "bytes have no fields");
    }

    #[test]
    fn an_identity_is_a_public_key_in_hex() {
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        for id in [key, "*"] {
            assert_eq!(check_identity("write", id), Ok(()));
        }
        let node = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp";
        let (upper, none) = (key.to_uppercase(), key.replace("79be", "****"));
        for id in [
            "",
            "02ab",
            "x",
            "**",
            node,
            &key[..64],
            &upper,
            &none,
            "zdpuAkwTad8UFrrtsFv42ZWfN2dKCXDHUDcUxRtGs22qxdbi5",
        ] {
            let refused = check_identity("write", id).unwrap_err();
            assert!(matches!(refused, DatabasesError::Invalid { param: "write", .. }), "{id}");
            assert_eq!(refused.to_string().contains("the id of a node"), id == node, "{refused}");
            assert!(refused.to_string().contains("bombus db list"), "{refused}");
        }
    }

    #[test]
    fn who_may_not_write_is_sent_to_an_admin_only_where_there_is_one() {
        let refused = |is_fixed| unwritten(DatabaseError::Append(AppendError::NotAdmitted), is_fixed).to_string();
        assert!(refused(false).contains("admin"), "{}", refused(false));
        assert!(!refused(true).contains("admin") && refused(true).contains("fixed"), "{}", refused(true));
    }

    #[test]
    fn what_a_user_can_mend_is_told_apart_from_what_failed() {
        let append = |error| of_database(DatabaseError::Append(error));
        assert!(matches!(append(AppendError::NotAdmitted), DatabasesError::NotAdmitted(_)));
        let taken = DbError::Name("/x".into());
        assert!(matches!(refused(taken), DatabasesError::Invalid { param: "name", .. }));
        assert!(matches!(refused(DbError::Stopped), DatabasesError::Unavailable(_)));
        assert!(matches!(refused(DbError::Failed("x".into())), DatabasesError::Failed(_)));
    }
}
