//! Notices when this node's own identity dials in.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::{PeerId, noise};

/// Counts how often this node's own identity dialled in since it was asked last.
///
/// The swarm cannot tell: the side that dialled sees whom it met a moment earlier and breaks the connection off.
#[derive(Debug, Clone, Default)]
pub(crate) struct MetSelf(Arc<AtomicU32>);

impl MetSelf {
    /// Returns the count and begins anew.
    pub(crate) fn take(&self) -> u32 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// Noise, with an eye on who comes in.
#[derive(Clone)]
pub(super) struct Watched {
    noise: noise::Config,
    own: PeerId,
    met: MetSelf,
}

impl Watched {
    pub(super) fn new(noise: noise::Config, own: PeerId, met: MetSelf) -> Self {
        Self { noise, own, met }
    }
}

type Upgraded<S> = Pin<Box<dyn Future<Output = Result<(PeerId, noise::Output<S>), noise::Error>> + Send>>;

impl UpgradeInfo for Watched {
    type Info = <noise::Config as UpgradeInfo>::Info;
    type InfoIter = <noise::Config as UpgradeInfo>::InfoIter;

    fn protocol_info(&self) -> Self::InfoIter {
        self.noise.protocol_info()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<S> for Watched {
    type Output = (PeerId, noise::Output<S>);
    type Error = noise::Error;
    type Future = Upgraded<S>;

    fn upgrade_inbound(self, socket: S, info: Self::Info) -> Self::Future {
        let upgrade = self.noise.upgrade_inbound(socket, info);
        Box::pin(async move {
            let (peer, output) = upgrade.await?;
            if peer == self.own {
                self.met.0.fetch_add(1, Ordering::Relaxed);
            }
            Ok((peer, output))
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<S> for Watched {
    type Output = (PeerId, noise::Output<S>);
    type Error = noise::Error;
    type Future = Upgraded<S>;

    fn upgrade_outbound(self, socket: S, info: Self::Info) -> Self::Future {
        self.noise.upgrade_outbound(socket, info)
    }
}
