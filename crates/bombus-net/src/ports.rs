//! Which port to listen on: the one that was asked for, or where nobody chose it and it is taken, a free one.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::ListenOn;
use crate::failure::NetError;
use crate::platform::take_over_address;

/// Finds the addresses to listen on, with the port that each one gets.
///
/// The transport shares its port with sockets of its own, so that it would take a taken port without a word; that is why it is tried
/// here before. An address of a family that the machine lacks is left out, unless somebody chose it.
pub(crate) fn resolve(listen: &[ListenOn]) -> Result<Vec<ListenOn>, NetError> {
    // Both families get the same port where that is possible.
    let mut replaced: HashMap<u16, u16> = HashMap::new();
    let mut found = Vec::new();
    for wanted in listen {
        let addr = SocketAddr::new(wanted.ip, replaced.get(&wanted.port).copied().unwrap_or(wanted.port));
        let error = match try_bind(addr) {
            Ok(port) => {
                replaced.insert(wanted.port, port);
                found.push(ListenOn { port, ..*wanted });
                continue;
            }
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::AddrInUse
            && !wanted.port_is_fixed
            && let Ok(port) = try_bind(SocketAddr::new(wanted.ip, 0))
        {
            tracing::info!(
                p2p.port = wanted.port,
                p2p.free_port = port,
                "the port for peers is taken; a free one is used"
            );
            replaced.insert(wanted.port, port);
            found.push(ListenOn { port, ..*wanted });
            continue;
        }
        if error.kind() == io::ErrorKind::AddrInUse {
            return Err(NetError::PortTaken { addr: addr.to_string() });
        }
        if wanted.port_is_fixed || !is_missing_family(wanted.ip, &error) {
            return Err(NetError::Listen { addr: addr.to_string(), why: error.to_string() });
        }
        tracing::info!(p2p.addr = %addr, %error, "this machine does not have that kind of address; peers are not listened for there");
    }
    Ok(found)
}

/// Finds a free port for an address whose own is taken; `preferred` if it is free.
pub(crate) fn another(ip: IpAddr, preferred: Option<u16>) -> io::Result<u16> {
    let preferred = preferred.map(|port| try_bind(SocketAddr::new(ip, port)));
    preferred.and_then(Result::ok).map_or_else(|| try_bind(SocketAddr::new(ip, 0)), Ok)
}

/// Says why an address cannot be listened on now, if that is so.
pub(crate) fn check(addr: SocketAddr) -> Result<(), String> {
    match try_bind(addr) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err("another process listens there".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn is_missing_family(ip: IpAddr, error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::Unsupported, io::ErrorKind::AddrNotAvailable, io::ErrorKind::InvalidInput];
    // Linux: EAFNOSUPPORT, for which the standard library has no kind.
    ip.is_unspecified() && (kinds.contains(&error.kind()) || error.raw_os_error() == Some(97) || ip.is_ipv6())
}

/// Takes the port for a moment, and nobody else's; returns which one it was.
fn try_bind(addr: SocketAddr) -> io::Result<u16> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    take_over_address(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(1)?;
    let bound = socket.local_addr()?.as_socket();
    bound.map(|bound| bound.port()).ok_or_else(|| io::Error::other("the socket has no address"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn a_taken_port_that_nobody_chose_is_replaced() {
        let taken = TcpListener::bind((HERE, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let found = resolve(&[ListenOn { ip: HERE, port, port_is_fixed: false }]).unwrap();
        assert_ne!(found[0].port, port);
        assert_ne!(found[0].port, 0, "the free port is known");
    }

    #[test]
    fn a_taken_port_that_somebody_chose_is_an_error() {
        let taken = TcpListener::bind((HERE, 0)).unwrap();
        let addr = taken.local_addr().unwrap();
        let error = resolve(&[ListenOn::fixed(HERE, addr.port())]).unwrap_err();
        assert!(matches!(&error, NetError::PortTaken { addr: text } if *text == addr.to_string()), "{error}");
    }

    #[test]
    fn both_families_get_the_same_free_port() {
        let found = resolve(&[ListenOn::any_v4(0), ListenOn::any_v6(0)]).unwrap();
        assert!(found.iter().all(|addr| addr.port == found[0].port), "{found:?}");
    }
}
