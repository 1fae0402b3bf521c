use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::body::BodyRoom;
use crate::{HttpConfig, Services};

/// What every handler shares.
pub(crate) struct App {
    pub(crate) config: HttpConfig,
    pub(crate) services: Services,
    /// The address that is really listened on.
    pub(crate) bound: SocketAddr,
    /// Memory for the bodies of requests.
    pub(crate) body_room: BodyRoom,
    /// Cancelled when a shutdown begins: streams that would never end by themselves end.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the grace time of a shutdown is over: running answers end with an error.
    pub(crate) cut: CancellationToken,
    /// `system_fingerprint` of every answer.
    pub(crate) fingerprint: Arc<str>,
    /// The API document, serialised once.
    pub(crate) openapi: Bytes,
}

impl App {
    pub(crate) fn new(config: HttpConfig, services: Services, bound: SocketAddr, openapi: Bytes) -> Self {
        let fingerprint = format!("bombus-{}", services.node.version).into();
        let body_room = BodyRoom::new(config.limits.bodies_bytes_max);
        let (stopping, cut) = (CancellationToken::new(), CancellationToken::new());
        Self { config, services, bound, body_room, stopping, cut, fingerprint, openapi }
    }
}

pub(crate) type SharedApp = Arc<App>;
