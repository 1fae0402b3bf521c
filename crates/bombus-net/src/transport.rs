//! The transport: TCP with names, the swarm key, Noise, Yamux; and the same inside relayed connections.
//!
//! Both halves of a connection prove that they have the swarm key before Noise begins: the first bytes that come out of the private
//! network's cipher have to be the greeting that every libp2p node opens with ([`guard`]).

use std::fmt;
use std::future::ready;
use std::io;
use std::time::Duration;

use either::Either as Step;
use futures::future::Either;
use futures::{AsyncRead, AsyncWrite, TryFutureExt};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::timeout::{TransportTimeout, TransportTimeoutError};
use libp2p::core::transport::{Boxed, OrTransport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::pnet::{PnetConfig, PreSharedKey};
use libp2p::{Multiaddr, PeerId, Transport, TransportError, dns, noise, relay, tcp, yamux};

use crate::address;
use crate::failure::{DialFailure, NetError};
use crate::membership::Privacy;

mod broken;
pub(crate) mod fuzzing;
mod guard;
mod met_self;
mod paced;
#[cfg(test)]
mod tests;

pub(crate) use broken::Broken;
use guard::{Greeted, Recorded, Socket};
pub(crate) use met_self::MetSelf;
use met_self::Watched;
use paced::Paced;
pub(crate) use paced::Rate;

/// How many streams a connection may have at once, in both directions together.
const STREAMS_MAX: usize = 1024;

/// What a transport makes of an address.
pub(crate) type Upgraded = (PeerId, StreamMuxerBox);

/// Builds the transport of a node; `limit` bounds connecting, and then again the handshakes. `circuits` is how much each circuit may take
/// that peers have this node carry.
pub(crate) fn with_relay(
    key: &Keypair,
    privacy: &Privacy,
    relay: relay::client::Transport,
    met: &MetSelf,
    limit: Duration,
    circuits: Option<Rate>,
) -> Result<Boxed<Upgraded>, NetError> {
    let direct = secured(tcp_with_names(limit), key, privacy, met, limit, circuits)?;
    // The connection to the relay may have to be made first.
    let relayed = TransportTimeout::with_outgoing_timeout(relay, limit * 2).map_err(|error| match error {
        TransportTimeoutError::Timeout | TransportTimeoutError::TimerError(_) => Broken::ConnectTimeout,
        TransportTimeoutError::Other(error) => Broken::Relay(chain(&error)),
    });
    let relayed = secured(relayed, key, privacy, met, limit, circuits)?;
    let either = OrTransport::new(relayed, direct).map(|output, _| match output {
        Either::Left(upgraded) | Either::Right(upgraded) => upgraded,
    });
    Ok(either.map_err(Step::into_inner).boxed())
}

/// Builds the transport that a probe uses.
pub(crate) fn direct(key: &Keypair, privacy: &Privacy, limit: Duration) -> Result<Boxed<Upgraded>, NetError> {
    secured(tcp_with_names(limit), key, privacy, &MetSelf::default(), limit, None)
}

fn tcp_with_names(
    limit: Duration,
) -> impl Transport<Output = tcp::tokio::TcpStream, Error = Broken, Dial: Send + 'static, ListenerUpgrade: Send + 'static>
+ Send
+ Unpin
+ 'static {
    let sockets = || tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    // A machine without a readable resolver configuration still reaches addresses that are no names.
    let named = dns::tokio::Transport::system(sockets()).unwrap_or_else(|error| {
        tracing::debug!(%error, "the system's resolver configuration cannot be read; names in addresses may fail");
        dns::tokio::Transport::custom(sockets(), dns::ResolverConfig::default(), dns::ResolverOpts::default())
    });
    let sockets = TransportTimeout::with_outgoing_timeout(named, limit).map_err(|error| match error {
        TransportTimeoutError::Timeout | TransportTimeoutError::TimerError(_) => Broken::ConnectTimeout,
        TransportTimeoutError::Other(error) => Broken::of_tcp(error),
    });
    sockets.and_then(|socket, _| ready(not_its_own_end(socket))).map_err(Step::into_inner)
}

/// Dialled from the port that it listens on, an address of this node connects a socket to itself.
fn not_its_own_end(socket: tcp::tokio::TcpStream) -> Result<tcp::tokio::TcpStream, Broken> {
    match (socket.0.local_addr(), socket.0.peer_addr()) {
        (Ok(local), Ok(remote)) if local == remote => Err(Broken::ItsOwnEnd),
        _ => Ok(socket),
    }
}

/// Puts the swarm key, Noise and Yamux on top of a transport.
fn secured<T, S>(
    sockets: T,
    key: &Keypair,
    privacy: &Privacy,
    met: &MetSelf,
    limit: Duration,
    circuits: Option<Rate>,
) -> Result<Boxed<Upgraded>, NetError>
where
    T: Transport<Output = S, Error = Broken, Dial: Send + 'static, ListenerUpgrade: Send + 'static>,
    T: Send + Unpin + 'static,
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let noise = noise::Config::new(key).map_err(|error| NetError::Build(error.to_string()))?;
    let noise = Watched::new(noise, key.public().to_peer_id(), met.clone());
    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(STREAMS_MAX);
    let shared_key = match privacy {
        Privacy::Closed(key) => Some(PreSharedKey::new(*key.as_bytes())),
        Privacy::Open => None,
    };
    let guarded = sockets
        .and_then(move |socket, _| private(socket, shared_key, limit))
        .map_err(Step::into_inner)
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux);
    // Connecting, the exchange of nonces, the greeting: each has its own limit inside, and this one bounds what remains.
    let bounded = TransportTimeout::new(guarded, limit * 3)
        .map(move |(peer, muxer), _| (peer, StreamMuxerBox::new(Paced::new(muxer, circuits))))
        .map_err(|error| match error {
            TransportTimeoutError::Timeout | TransportTimeoutError::TimerError(_) => Broken::HandshakeTimeout,
            TransportTimeoutError::Other(Step::Left(Step::Left(broken))) => broken,
            TransportTimeoutError::Other(Step::Left(Step::Right(error))) => Broken::of_upgrade(&error),
            TransportTimeoutError::Other(Step::Right(error)) => Broken::of_upgrade(&error),
        });
    Ok(bounded.boxed())
}

/// Goes through the private network's handshake, if there is one, and guards what comes after.
async fn private<S>(socket: S, key: Option<PreSharedKey>, limit: Duration) -> Result<Greeted<Socket<S>>, Broken>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(key) = key else {
        return Ok(Greeted::new(Socket::Open(socket), limit, false));
    };
    let recorded = Recorded::new(socket);
    let nonce = recorded.nonce();
    let handshake = PnetConfig::new(key).handshake(recorded).map_err(|error| error.to_string());
    match tokio::time::timeout(limit, handshake).await {
        Ok(Ok(_)) if nonce.is_text() => Err(Broken::NotPrivate),
        Ok(Ok(socket)) => Ok(Greeted::new(Socket::Private(Box::new(socket)), limit, true)),
        // It closed the connection instead, or said something else.
        Ok(Err(why)) if nonce.is_random() => Err(Broken::Handshake(why)),
        Ok(Err(_)) => Err(Broken::NotPrivate),
        // What sends no nonce by itself is no member of a private network.
        Err(_) => Err(Broken::NotPrivate),
    }
}

/// Says why an address failed, in the words of the mesh.
pub(crate) fn explain(addr: &Multiaddr, error: &TransportError<io::Error>) -> DialFailure {
    match error {
        TransportError::MultiaddrNotSupported(_) => {
            DialFailure::InvalidAddress { why: "no transport takes it".to_owned() }
        }
        TransportError::Other(error) => match find::<Broken>(error) {
            Some(broken) => broken.explain(address::ip_of(addr).is_some_and(|ip| ip.is_ipv6())),
            None => DialFailure::Handshake { why: chain(error) },
        },
    }
}

/// Says whether it takes another look what is at an address that failed so.
pub(crate) fn is_unclear(error: &TransportError<io::Error>) -> bool {
    let TransportError::Other(error) = error else {
        return false;
    };
    matches!(find::<Broken>(error), Some(Broken::NotPrivate | Broken::NotLibp2p | Broken::HandshakeTimeout) | None)
}

/// Finds an error of a type among what an error stands for.
pub(crate) fn find<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // The source of an `io::Error` is its payload's source, not the payload, and Noise hides the `io::Error` likewise.
        next = if let Some(io) = error.downcast_ref::<io::Error>() {
            io.get_ref().map(|payload| payload as &(dyn std::error::Error + 'static))
        } else if let Some(noise::Error::Io(io)) = error.downcast_ref::<noise::Error>() {
            Some(io)
        } else {
            error.source()
        };
    }
    None
}

/// Writes an error with what it stands for, in one line of at most 200 characters.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    use fmt::Write as _;

    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let part = error.to_string();
        if !text.ends_with(&part) {
            // Writing to a string cannot fail.
            let _ = write!(text, ": {part}");
        }
        next = error.source();
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}
