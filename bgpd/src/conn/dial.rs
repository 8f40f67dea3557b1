//! Outgoing connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    time::Duration,
};

use brindle_bgpd_core::speaker::PeerConfig;
use brindle_kernel::tcp;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Exit, Token};

/// Where to and how.
#[derive(Clone, Debug)]
pub(crate) struct Dial {
    pub(crate) to: SocketAddr,
    pub(crate) from: Option<IpAddr>,
    /// GTSM: at most this many hops away.
    pub(crate) ttl: Option<u8>,
    pub(crate) password: Option<String>,
    /// Device to be bound to; the scope of a link-local address.
    pub(crate) interface: Option<String>,
    /// TTL, unless GTSM says 255.
    pub(crate) hops: Option<u8>,
    pub(crate) timeout: Duration,
}

/// Connects, with the outcome as the task's exit.
pub(crate) async fn dial(token: Token, dial: Dial) -> Exit {
    let stream = match timeout(dial.timeout, connect(&dial)).await {
        Ok(done) => done,
        Err(_) => {
            let what = format!("no answer from {} within {} s", dial.to, dial.timeout.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, what))
        }
    };
    Exit::Dialed { token, stream }
}

async fn connect(dial: &Dial) -> io::Result<TcpStream> {
    let ipv4 = dial.to.is_ipv4();
    let socket = if ipv4 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(password) = &dial.password {
        tcp::set_md5(&socket, dial.to.ip(), Some(password.as_bytes()))?;
    }
    // Before the first segment: the handshake is checked and marked, too.
    options(&socket, ipv4, dial.ttl, dial.hops)?;
    let mut to = dial.to;
    if let Some(interface) = &dial.interface {
        let index = tcp::device_index(interface)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        if let SocketAddr::V6(v6) = &mut to
            && v6.ip().is_unicast_link_local()
        {
            v6.set_scope_id(index);
        }
    }
    if let Some(from) = dial.from {
        socket
            .bind(SocketAddr::new(from, 0))
            .map_err(|e| io::Error::new(e.kind(), format!("source address {from}: {e}")))?;
    }
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// TTLs and DSCP. `ttl`: GTSM, the peer is at most so many hops away; `hops`: how far ours may go.
fn options(socket: impl AsFd, ipv4: bool, ttl: Option<u8>, hops: Option<u8>) -> io::Result<()> {
    let socket = socket.as_fd();
    tcp::set_tos(socket, ipv4, tcp::TOS_CS6)?;
    match (ttl, hops) {
        (Some(near), _) => {
            tcp::set_ttl(socket, ipv4, u8::MAX)?;
            // One hop: 255 exactly (RFC 5082 section 3).
            tcp::set_min_ttl(socket, ipv4, u8::MAX - near.saturating_sub(1))
        }
        (None, Some(far)) => tcp::set_ttl(socket, ipv4, far),
        (None, None) => Ok(()),
    }
}

/// What every accepted connection gets. `Err` of kind `NotFound`: the device of the peer is not there.
pub(crate) fn prepare(stream: &TcpStream, cfg: &PeerConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    if let (Some(interface), SocketAddr::V6(v6)) = (&cfg.session.interface, remote)
        && v6.ip().is_unicast_link_local()
        && tcp::device_index(interface)? != v6.scope_id()
    {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("not from {interface}")));
    }
    options(stream, remote.is_ipv4(), cfg.ttl, cfg.session.hops)
}
