use std::fmt;

use axum::http::HeaderValue;
use bombus_core::chat::Answerer;
use bombus_core::identity::NodeId;
use serde::Serialize;
use utoipa::ToSchema;

use super::route_value;

/// Longest reason that is told, in characters. Other nodes write it.
const REASON_MAX: usize = 300;
/// Longest name of a backend or a model that is told, in characters.
const NAME_MAX: usize = 300;

/// Who went on with an answer after whoever gave it had broken off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Continuation {
    /// Which of several answers it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<usize>,
    /// Id of the node that went on.
    pub(crate) node: String,
    /// The model's name there.
    pub(crate) model: String,
    /// The backend there.
    pub(crate) backend: String,
    /// Why the one before broke off.
    pub(crate) reason: String,
}

/// What OpenAI's dialect has no place for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Extras {
    /// Who went on with the answer each time that it broke off, in order.
    continued: Vec<Continuation>,
}

impl Extras {
    /// Makes something of it where there is anything to tell.
    pub(crate) fn of(continued: Vec<Continuation>) -> Option<Self> {
        (!continued.is_empty()).then_some(Self { continued })
    }
}

impl Continuation {
    /// Describes one. What another node wrote becomes a line without control characters.
    pub(crate) fn new(index: Option<usize>, by: &Answerer, own: &NodeId, reason: &str) -> Self {
        Self {
            index,
            node: by.node.as_ref().unwrap_or(own).to_string(),
            model: line(&by.model, NAME_MAX).replace(';', ","),
            backend: line(&by.backend, NAME_MAX).replace(';', ","),
            reason: line(reason, REASON_MAX),
        }
    }

    /// Names who went on as the `x-bombus-route` header does.
    pub(super) fn route(&self) -> HeaderValue {
        route_value(&self.node, &self.model, &self.backend, "continued")
    }
}

impl fmt::Display for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, model, backend, reason, .. } = self;
        write!(f, "continued by {node};{model};{backend}; {reason}")
    }
}

fn line(text: &str, characters_max: usize) -> String {
    let plain = text.chars().map(|character| if character.is_control() { ' ' } else { character });
    plain.take(characters_max).collect()
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;

    #[test]
    fn no_reason_breaks_out_of_its_line() {
        let own = NodeKey::from_secret(&[1; 32]).node_id();
        let by = Answerer { node: None, backend: "a;b".into(), model: "m".into() };
        let told = Continuation::new(None, &by, &own, &format!("gone\r\n\ndata: {{}}\n\n{}", "x".repeat(1_000)));
        assert!(told.to_string().starts_with(&format!("continued by {own};m;a,b; gone   data: {{}}  xx")), "{told}");
        assert!(!told.to_string().contains(['\n', '\r']) && told.reason.chars().count() == REASON_MAX);
    }
}
