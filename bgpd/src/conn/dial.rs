//! Outgoing connections.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

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
    if dial.ttl.is_some() {
        tcp::set_ttl(&socket, ipv4, u8::MAX)?;
    }
    if let Some(from) = dial.from {
        socket
            .bind(SocketAddr::new(from, 0))
            .map_err(|e| io::Error::new(e.kind(), format!("source address {from}: {e}")))?;
    }
    let stream = socket.connect(dial.to).await?;
    prepare(&stream, dial.ttl)?;
    Ok(stream)
}

/// What every BGP connection gets, dialled or accepted.
pub(crate) fn prepare(stream: &TcpStream, ttl: Option<u8>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    if let Some(hops) = ttl {
        let ipv4 = stream.peer_addr()?.is_ipv4();
        tcp::set_ttl(stream, ipv4, u8::MAX)?;
        // One hop: 255 exactly (RFC 5082 section 3).
        tcp::set_min_ttl(stream, ipv4, u8::MAX - hops.saturating_sub(1))?;
    }
    Ok(())
}
