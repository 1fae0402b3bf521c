//! Tool calls come in pieces that servers label in their own ways; here they are told apart.

use bombus_core::chat::ToolCallDelta;
use uuid::Uuid;

use super::chunk::{ChunkFunction, ChunkToolCall};

/// Most tool calls in one answer.
const CALLS_MAX: usize = 256;
/// Most of the arguments that are held back until the name of their tool is known.
const HELD_BYTES_MAX: usize = 1 << 20;

/// The calls of one answer so far.
#[derive(Debug, Default)]
pub(super) struct ToolCalls {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    /// The server's label.
    index: Option<u64>,
    id: Option<String>,
    named: bool,
    /// Arguments that came before the name.
    held: String,
}

impl ToolCalls {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Takes a piece of the legacy shape, which has room for one call.
    pub(super) fn on_function(&mut self, function: ChunkFunction) -> Result<Option<ToolCallDelta>, String> {
        self.on(ChunkToolCall { index: Some(0), id: None, function })
    }

    /// Takes a piece; returns what is to be passed on. Fails where there are too many calls.
    pub(super) fn on(&mut self, mut piece: ChunkToolCall) -> Result<Option<ToolCallDelta>, String> {
        let id = piece.id.take().filter(|id| !id.is_empty());
        let name = piece.function.name.take().filter(|name| !name.is_empty());
        let arguments = piece.function.take_arguments();
        let at = self.find(piece.index, id.as_deref(), name.is_some());
        if at == CALLS_MAX {
            return Err(format!("it calls more than {CALLS_MAX} tools at once"));
        }
        if at == self.calls.len() {
            self.calls.push(Call { index: piece.index, id, named: false, held: String::new() });
        } else if self.calls[at].id.is_none() {
            self.calls[at].id = id;
        }
        let call = &mut self.calls[at];
        let index = at as u32;
        if call.named {
            return Ok((!arguments.is_empty()).then_some(ToolCallDelta { index, id: None, name: None, arguments }));
        }
        if name.is_none() {
            if call.held.len() + arguments.len() > HELD_BYTES_MAX {
                return Err("it calls a tool without a name".to_owned());
            }
            call.held.push_str(&arguments);
            return Ok(None);
        }
        call.named = true;
        let id = call.id.get_or_insert_with(|| format!("call_{}", Uuid::new_v4().simple())).clone();
        let arguments = std::mem::take(&mut call.held) + &arguments;
        Ok(Some(ToolCallDelta { index, id: Some(id), name, arguments }))
    }

    /// Fails where a call never got its name.
    pub(super) fn finish(&self) -> Result<(), String> {
        let nameless = self.calls.iter().any(|call| !call.named);
        if nameless { Err("it calls a tool without a name".to_owned()) } else { Ok(()) }
    }

    /// Finds the call that a piece belongs to; the number of calls where it begins a new one. Some servers send whole calls without an
    /// index, some number all of them 0: a name with another id is another call.
    fn find(&self, index: Option<u64>, id: Option<&str>, named: bool) -> usize {
        let begins_another = |call: &Call| match (call.id.as_deref(), id) {
            (Some(known), Some(id)) => known != id && named,
            _ => false,
        };
        let found = match index {
            Some(_) => self.calls.iter().rposition(|call| call.index == index),
            None => match id {
                Some(_) => self.calls.iter().rposition(|call| call.id.as_deref() == id),
                None if named => None,
                None => self.calls.len().checked_sub(1),
            },
        };
        found.filter(|at| !begins_another(&self.calls[*at])).unwrap_or(self.calls.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Feeds pieces and joins what comes out, by call.
    fn joined(pieces: &[Value]) -> Vec<(String, String, String)> {
        let mut calls = ToolCalls::default();
        let mut joined: Vec<(String, String, String)> = Vec::new();
        for piece in pieces {
            let Some(delta) = calls.on(serde_json::from_value(piece.clone()).unwrap()).unwrap() else { continue };
            let at = delta.index as usize;
            assert_eq!(at == joined.len(), delta.name.is_some(), "only the first piece has a name: {delta:?}");
            if at == joined.len() {
                joined.push((delta.id.unwrap(), delta.name.unwrap(), String::new()));
            }
            joined[at].2.push_str(&delta.arguments);
        }
        calls.finish().unwrap();
        joined
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.to_owned(), name.to_owned(), arguments.to_owned())
    }

    #[test]
    fn pieces_are_joined_by_their_index() {
        let pieces = [
            json!({"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}),
            json!({"index": 1, "id": "b", "function": {"name": "g", "arguments": ""}}),
            json!({"index": 0, "function": {"arguments": "{\"x\":"}}),
            json!({"index": 1, "function": {"arguments": "{}"}}),
            json!({"index": 0, "function": {"arguments": "1}"}}),
        ];
        assert_eq!(joined(&pieces), [call("a", "f", "{\"x\":1}"), call("b", "g", "{}")]);
    }

    #[test]
    fn whole_calls_need_no_index_and_may_all_have_the_same() {
        let expected = [call("a", "f", "{}"), call("b", "f", "{}")];
        let whole =
            |index: Value, id: &str| json!({"index": index, "id": id, "function": {"name": "f", "arguments": {}}});
        assert_eq!(joined(&[whole(Value::Null, "a"), whole(Value::Null, "b")]), expected);
        assert_eq!(joined(&[whole(json!(0), "a"), whole(json!(0), "b")]), expected);
    }

    #[test]
    fn calls_without_index_go_on_where_the_last_piece_was() {
        let pieces = [
            json!({"function": {"name": "f", "arguments": "{"}}),
            json!({"function": {"arguments": "}"}}),
            json!({"function": {"name": "g", "arguments": "{}"}}),
        ];
        let joined = joined(&pieces);
        assert_eq!(joined.iter().map(|call| (&*call.1, &*call.2)).collect::<Vec<_>>(), [("f", "{}"), ("g", "{}")]);
        assert!(joined[0].0 != joined[1].0 && joined[0].0.starts_with("call_"));
    }

    #[test]
    fn a_name_and_an_id_that_are_repeated_begin_no_new_call() {
        let piece = |arguments: &str| json!({"index": 0, "id": "a", "function": {"name": "f", "arguments": arguments}});
        assert_eq!(joined(&[piece("{"), piece("}")]), [call("a", "f", "{}")]);
    }

    #[test]
    fn arguments_wait_for_the_name() {
        let pieces = [
            json!({"index": 0, "id": "a", "function": {"arguments": "{"}}),
            json!({"index": 0, "function": {"name": "f", "arguments": "}"}}),
        ];
        assert_eq!(joined(&pieces), [call("a", "f", "{}")]);
        let mut calls = ToolCalls::default();
        calls.on(serde_json::from_value(pieces[0].clone()).unwrap()).unwrap();
        assert!(calls.finish().is_err());
    }
}
