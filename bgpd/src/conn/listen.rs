//! Listening sockets. One per address; IPv6 sockets take IPv6 only, so that both families can listen on one port
//! and a key for an IPv4 peer needs no mapped address.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use brindle_kernel::tcp;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpListener, sync::mpsc, task::AbortHandle, time::sleep};
use tracing::{info, warn};

use super::Report;

const BACKLOG: i32 = 512;
/// Pause after accept failed for want of descriptors or memory: existing sessions go on, the backlog waits.
const PAUSE: Duration = Duration::from_millis(500);

/// A listening socket and the task that accepts from it; stops listening when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Arc<TcpListener>,
    task: AbortHandle,
}

impl Listener {
    /// Starts listening.
    ///
    /// # Errors
    /// The system's refusal, e.g. address in use.
    pub(crate) fn open(address: SocketAddr, inbox: mpsc::Sender<Report>) -> io::Result<Self> {
        let socket = Arc::new(bind(address)?);
        let task = tokio::spawn(accept(Arc::clone(&socket), address, inbox)).abort_handle();
        Ok(Self { socket, task })
    }

    /// Where it really listens (the port, if 0 was asked for).
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Requires connections from `peer` to be signed with this key, or no longer. Peers of the other family are none
    /// of this socket's business.
    pub(crate) fn set_password(&self, peer: IpAddr, password: Option<&str>) -> io::Result<()> {
        if self.socket.local_addr()?.is_ipv4() != peer.is_ipv4() {
            return Ok(());
        }
        tcp::set_md5(&*self.socket, peer, password.map(str::as_bytes))
    }
}

impl Listener {
    /// The same for everybody in a range.
    pub(crate) fn set_range_password(&self, range: IpNet, password: Option<&str>) -> io::Result<()> {
        if self.socket.local_addr()?.is_ipv4() != range.addr().is_ipv4() {
            return Ok(());
        }
        tcp::set_md5_range(&*self.socket, range, password.map(str::as_bytes))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // So that the handshake passes a peer that has GTSM on; what is accepted inherits it, which harms nobody.
    tcp::set_ttl(&socket, address.is_ipv4(), u8::MAX)?;
    tcp::set_tos(&socket, address.is_ipv4(), tcp::TOS_CS6)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn accept(socket: Arc<TcpListener>, via: SocketAddr, inbox: mpsc::Sender<Report>) {
    let mut failing = false;
    loop {
        let report = match socket.accept().await {
            Ok((stream, remote)) => match stream.local_addr() {
                Ok(local) => Report::Accepted { stream, via, local, remote },
                // Gone before it was looked at.
                Err(_) => continue,
            },
            Err(e) if is_about_the_connection(&e) => continue,
            Err(e) => {
                if !failing {
                    warn!(error = %e, "cannot accept BGP connections; existing sessions go on, trying again");
                    failing = true;
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        if failing {
            info!("accepting BGP connections again");
            failing = false;
        }
        if inbox.send(report).await.is_err() {
            return;
        }
    }
}

/// accept(2) hands on errors of the connection it would have returned; those say nothing about the listener.
fn is_about_the_connection(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}
