use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue};
use bombus_core::identity::NodeId;
use bombus_core::placement::Scope;

use crate::app::{App, SharedApp};
use crate::error::ApiError;
use crate::mesh::{MeshError, PeerState, choose};

/// Says where a request may be answered: `local`, `remote`, or `node=` and a node's name or id.
pub(crate) const SCOPE_HEADER: HeaderName = HeaderName::from_static(SCOPE);

const SCOPE: &str = "x-bombus-scope";

/// Most names that an error lists.
const NAMES_MAX: usize = 20;

/// Where a request may be answered, as its header says; anywhere, where it has none.
pub(crate) struct Scoped(pub(crate) Scope);

impl FromRequestParts<SharedApp> for Scoped {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        let mut given = parts.headers.get_all(SCOPE_HEADER).iter();
        let scope = match (given.next(), given.next()) {
            (None, _) => Scope::Anywhere,
            (Some(value), None) => read(app, text_of(value)?, SCOPE)?,
            (Some(_), Some(_)) => return Err(bad(SCOPE)),
        };
        Ok(Self(scope))
    }
}

/// People give their machines names in all alphabets.
fn text_of(value: &HeaderValue) -> Result<&str, ApiError> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| bad(SCOPE))
}

/// Reads where a request may be answered, from what stands in this header or parameter.
///
/// # Errors
///
/// It is none of the words, or nobody is called so.
pub(crate) fn read(app: &App, text: &str, param: &'static str) -> Result<Scope, ApiError> {
    match text.trim() {
        "local" => Ok(Scope::Local),
        "remote" => Ok(Scope::Remote),
        other => match other.strip_prefix("node=").map(str::trim) {
            Some(wanted) if !wanted.is_empty() => node(app, wanted, param),
            _ => Err(bad(param)),
        },
    }
}

fn bad(param: &'static str) -> ApiError {
    let message = format!("'{param}' has to be 'local', 'remote', or 'node=' and the name or id of a node");
    ApiError::invalid_value(param, message)
}

fn node(app: &App, wanted: &str, param: &'static str) -> Result<Scope, ApiError> {
    let own = &app.services.node;
    let peers = app.services.mesh.as_ref().map(|mesh| mesh.peers()).unwrap_or_default();
    let others = peers.iter().map(|peer| (peer.node_id.as_str(), peer.hostname.as_str()));
    match choose(wanted, others.chain([(own.node_id.as_str(), own.name.as_str())])) {
        Ok(chosen) if chosen == own.node_id.as_str() => Ok(Scope::Local),
        Ok(chosen) => NodeId::parse(chosen).map(Scope::Node).map_err(|error| {
            tracing::warn!(node.id = chosen, %error, "the mesh knows a node by what is no id");
            ApiError::internal()
        }),
        Err(MeshError::UnknownPeer(message)) => {
            let here = peers.iter().filter(|peer| peer.state != PeerState::Gone).map(|peer| peer.hostname.as_str());
            let mut names: Vec<&str> = here.take(NAMES_MAX).collect();
            names.sort_unstable();
            let others: String = names.iter().map(|name| format!(", {name}")).collect();
            Err(ApiError::peer_not_found(format!("{message}; there are {} (this node){others}", own.name)).at(param))
        }
        Err(error) => Err(ApiError::invalid_value(param, error.to_string())),
    }
}
