//! Databases and rows as people read them.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cli::output;
use crate::failure::{Exit, Failure};
use crate::printable::one_line;

/// What `bombus db list` shows.
#[derive(Debug, Deserialize)]
pub(super) struct List {
    identity: String,
    databases: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    name: String,
    address: String,
    r#type: String,
    open: bool,
}

/// What `bombus db info` shows.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    name: String,
    pub(super) address: String,
    r#type: String,
    index_by: Option<String>,
    identity: String,
    pub(super) access: Access,
    heads: Vec<String>,
    entries: u64,
    rows: u64,
    log_bytes: u64,
    stored_bytes: u64,
    durable: Option<bool>,
    entries_grown: i64,
    bytes_grown: u64,
    refused: BTreeMap<String, u64>,
    dropped: BTreeMap<String, u64>,
    #[serde(default)]
    grants_refused: BTreeMap<String, u64>,
    #[serde(default)]
    grants_dropped: BTreeMap<String, u64>,
    broken: u64,
    parked: u64,
    missing: u64,
    peers: Vec<Peer>,
    #[serde(default)]
    catching_up: Vec<CatchUp>,
}

/// Who may write.
#[derive(Debug, Deserialize)]
pub(super) struct Access {
    grantable: bool,
    write: Vec<String>,
    admin: Vec<String>,
    writable: bool,
}

#[derive(Debug, Deserialize)]
struct Peer {
    node_id: String,
    hostname: String,
}

/// How far a node has sent what is missing here.
#[derive(Debug, Deserialize)]
struct CatchUp {
    node_id: String,
    entries: u64,
    blocks_done: u64,
    bytes_done: u64,
}

/// A row.
#[derive(Debug, Deserialize)]
pub(super) struct Row {
    key: Option<String>,
    value: Value,
}

impl List {
    pub(super) fn read(answer: &Value) -> Result<Self> {
        read(answer.clone())
    }

    pub(super) fn text(&self) -> String {
        let state = |entry: &Entry| if entry.open { "open" } else { "closed" }.to_owned();
        let rows = self
            .databases
            .iter()
            .map(|entry| [entry.name.clone(), entry.r#type.clone(), state(entry), entry.address.clone()]);
        let table = output::table(["NAME", "TYPE", "STATE", "ADDRESS"], rows);
        let space = if table.is_empty() { "" } else { "\n" };
        format!("{table}{space}this node writes as {}\n", one_line(&self.identity))
    }
}

impl Info {
    pub(super) fn read(answer: &Value) -> Result<Self> {
        read(answer.clone())
    }

    /// Says what is to be done where this node may not write.
    pub(super) fn read_only(&self) -> Option<String> {
        let how = match (self.access.writable, self.access.grantable) {
            (true, _) => return None,
            (false, true) => format!("an admin grants more: bombus db grant DATABASE {}", one_line(&self.identity)),
            (false, false) => "its writers were fixed when it was created".to_owned(),
        };
        Some(format!("this node may read it only; {how}"))
    }

    pub(super) fn text(&self, width: usize) -> String {
        let mut text = format!("{}\n", one_line(&self.address));
        let mut line =
            |name: &str, value: &str| text.push_str(&output::wrapped(&line_head(name), &one_line(value), width));
        line("name", &self.name);
        let key = self.index_by.as_ref().map(|field| format!(", with their keys in {field}"));
        line("type", &format!("{}{}", self.r#type, key.unwrap_or_default()));
        line("entries", &format!("{}, which show {} rows", self.entries, self.rows));
        let sizes = (output::size(self.log_bytes), output::size(self.stored_bytes));
        line("size", &format!("{} of entries, {} on the disk", sizes.0, sizes.1));
        match self.durable {
            Some(true) => line("puts", "on the disk when they are answered"),
            Some(false) => line("puts", "answered before they are on the disk: a crash may take the last ones"),
            None => {}
        }
        let grown = output::size(self.bytes_grown);
        line("grown", &format!("by {:+} entries and {grown} since it was opened", self.entries_grown));
        line("heads", &if self.heads.is_empty() { "none".to_owned() } else { self.heads.join(", ") });
        let peer = |peer: &Peer| {
            if peer.hostname == peer.node_id {
                peer.node_id.clone()
            } else {
                format!("{} ({})", peer.hostname, peer.node_id)
            }
        };
        let peers: Vec<String> = self.peers.iter().map(peer).collect();
        line("peers", &if peers.is_empty() { "none has it open now".to_owned() } else { peers.join(", ") });
        for CatchUp { node_id, entries, blocks_done, bytes_done } in &self.catching_up {
            let name = self.peers.iter().find(|of| of.node_id == *node_id).map_or(node_id, |of| &of.hostname);
            let bytes = output::size(*bytes_done);
            line("coming", &format!("{entries} entries from {name}: {blocks_done} blocks are here, {bytes}"));
        }
        let counts = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(reason, count)| format!("{count} for {reason}")).collect::<Vec<_>>().join(", ")
        };
        if !self.refused.is_empty() {
            line("refused", &counts(&self.refused));
        }
        if !self.dropped.is_empty() {
            line("dropped", &counts(&self.dropped));
        }
        let of_grants = [(&self.grants_refused, "kept"), (&self.grants_dropped, "not kept")];
        for (refused, what) in of_grants.into_iter().filter(|(refused, _)| !refused.is_empty()) {
            line("grants", &format!("refused and {what}: {}", counts(refused)));
        }
        if self.broken > 0 {
            line("broken", &format!("{} blocks that are no entries", self.broken));
        }
        if self.parked + self.missing > 0 {
            line("waiting", &format!("{} blocks for {} that are missing", self.parked, self.missing));
        }
        text + &self.access.text(width)
    }
}

impl Access {
    pub(super) fn text(&self, width: usize) -> String {
        let mut text = String::new();
        let mut line =
            |name: &str, value: &str| text.push_str(&output::wrapped(&line_head(name), &one_line(value), width));
        let writers = match self.write.as_slice() {
            [] => "nobody".to_owned(),
            [all] if all == "*" => "everybody".to_owned(),
            several => several.join(", "),
        };
        let own = if self.writable { "; this node may" } else { "; this node may not" };
        line("writers", &format!("{writers}{own}"));
        if self.grantable {
            line("admins", &self.admin.join(", "));
        }
        text
    }
}

impl Row {
    pub(super) fn read(line: &str) -> Result<Self> {
        serde_json::from_str(line).map_err(|error| not_understood(&error).into())
    }

    /// Writes key and value in one line.
    pub(super) fn text(&self) -> String {
        let value = one_line(&self.value.to_string());
        match &self.key {
            Some(key) => format!("{}  {value}\n", one_line(key)),
            None => format!("{value}\n"),
        }
    }
}

fn line_head(name: &str) -> String {
    format!("  {name:8} ")
}

fn read<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer).map_err(|error| not_understood(&error).into())
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::new(Exit::Failure, format!("the node sent what this version does not understand: {error}"))
        .hint("the node runs another version; start it again with this one")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info() -> Value {
        json!({
            "name": "no\u{1b}tes", "address": "/orbitdb/zdpuA", "type": "documents", "index_by": "_id", "identity": "02ab",
            "access": { "grantable": true, "write": ["02ab", "03cd"], "admin": ["02ab"], "writable": true },
            "heads": ["zdpuB"], "entries": 3, "rows": 2, "log_bytes": 1200, "stored_bytes": 4096, "durable": true, "entries_grown": -1,
            "bytes_grown": 2_048, "refused": { "access": 1 }, "dropped": {}, "grants_refused": {},
            "grants_dropped": { "access": 4 }, "broken": 0, "parked": 2, "missing": 1,
            "peers": [{ "node_id": "12D3KooW", "hostname": "hive" }],
            "catching_up": [{ "node_id": "12D3KooW", "entries": 500, "blocks_done": 120, "bytes_done": 204_800 }],
        })
    }

    #[test]
    fn a_database_is_described_in_lines() {
        let text = Info::read(&info()).unwrap().text(100);
        for line in [
            "name     notes",
            "type     documents, with their keys in _id",
            "entries  3, which show 2 rows",
            "puts     on the disk when they are answered",
            "grown    by -1 entries and 2.00 KiB since it was opened",
            "peers    hive (12D3KooW)",
            "coming   500 entries from hive: 120 blocks are here, 200.00 KiB",
            "refused  1 for access",
            "grants   refused and not kept: 4 for access",
            "waiting  2 blocks for 1 that are missing",
            "writers  02ab, 03cd; this node may",
            "admins   02ab",
        ] {
            assert!(text.contains(&format!("  {line}\n")), "{line}\n{text}");
        }
        assert!(!text.contains('\u{1b}') && !text.contains("dropped"), "{text}");
    }

    #[test]
    fn puts_that_a_crash_may_take_are_told() {
        let said = |durable: Value| {
            let mut info = info();
            info["durable"] = durable;
            Info::read(&info).unwrap().text(100)
        };
        assert!(said(json!(false)).contains("  puts     answered before they are on the disk"));
        assert!(!said(Value::Null).contains("puts"), "a node of before does not say");
    }

    #[test]
    fn a_grant_is_spoken_of_only_where_there_can_be_one() {
        let said = |grantable: bool, writable: bool| {
            let mut info = info();
            info["access"]["grantable"] = json!(grantable);
            info["access"]["writable"] = json!(writable);
            Info::read(&info).unwrap().read_only()
        };
        assert_eq!((said(true, true), said(false, true)), (None, None));
        assert!(said(true, false).unwrap().ends_with("bombus db grant DATABASE 02ab"));
        let fixed = said(false, false).unwrap();
        assert!(fixed.contains("fixed") && !fixed.contains("grant"), "{fixed}");
    }

    #[test]
    fn a_row_is_one_line_whatever_is_in_it() {
        let row = |line: &str| Row::read(line).unwrap().text();
        assert_eq!(row(r#"{"hash":"h","key":"a\nb","value":"x\ny"}"#), "ab  \"x\\ny\"\n");
        assert_eq!(row(r#"{"hash":"h","value":{"n":1}}"#), "{\"n\":1}\n");
    }

    #[test]
    fn a_list_says_as_whom_the_node_writes() {
        let list = json!({ "identity": "02ab", "databases": [
            { "name": "notes", "address": "/orbitdb/zdpuA", "type": "events", "open": false },
        ] });
        let text = List::read(&list).unwrap().text();
        assert!(text.contains("notes  events  closed  /orbitdb/zdpuA") && text.ends_with("writes as 02ab\n"), "{text}");
    }
}
