//! Listening sockets. One per address; IPv6 sockets take IPv6 only, so that both families can listen on one port
//! and a key for an IPv4 peer needs no mapped address.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use brindle_kernel::tcp;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::AbortHandle,
    time::sleep,
};
use tracing::{info, warn};

use super::Report;

const BACKLOG: i32 = 512;
/// Pause after accept failed for want of descriptors or memory: existing sessions go on, the backlog waits.
const PAUSE: Duration = Duration::from_millis(500);

/// Counts changes of keys, of all listening sockets. What was accepted has the count from before it was: its handshake
/// was under all keys that were set at a lower or the same count.
pub(crate) type Age = Arc<AtomicU64>;

/// A listening socket and the task that accepts from it; stops listening when dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Arc<TcpListener>,
    via: SocketAddr,
    age: Age,
    task: AbortHandle,
}

impl Listener {
    /// Starts listening. `ready` has the socket first, before anybody can connect to it.
    ///
    /// # Errors
    /// The system's refusal, e.g. address in use.
    pub(crate) fn open(
        address: SocketAddr,
        inbox: mpsc::Sender<Report>,
        age: &Age,
        ready: impl FnOnce(BorrowedFd<'_>),
    ) -> io::Result<Self> {
        let socket = bind(address)?;
        ready(socket.as_fd());
        socket.listen(BACKLOG)?;
        let socket = Arc::new(TcpListener::from_std(socket.into())?);
        let task = accept(Arc::clone(&socket), address, Arc::clone(age), inbox);
        Ok(Self { socket, via: address, age: Arc::clone(age), task: tokio::spawn(task).abort_handle() })
    }

    /// Where it really listens (the port, if 0 was asked for).
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Those that wait to be accepted: their handshakes are over, under the keys there were.
    pub(crate) fn waiting(&self) -> Vec<Report> {
        let age = self.age.load(Ordering::SeqCst);
        let socket = SockRef::from(&*self.socket);
        // Who connects all the time must not keep us here: more than this did not wait.
        let all = (0..=BACKLOG).map_while(|_| {
            loop {
                match socket.accept() {
                    Ok((stream, _)) => return Some(stream),
                    Err(e) if is_about_the_connection(&e) => {}
                    Err(_) => return None,
                }
            }
        });
        all.filter_map(|stream| {
            stream.set_nonblocking(true).ok()?;
            let stream = TcpStream::from_std(stream.into()).ok()?;
            let (local, remote) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
            Some(Report::Accepted { stream, via: self.via, local, remote, age })
        })
        .collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn bind(address: SocketAddr) -> io::Result<Socket> {
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
    Ok(socket)
}

async fn accept(socket: Arc<TcpListener>, via: SocketAddr, age: Age, inbox: mpsc::Sender<Report>) {
    let mut failing = false;
    loop {
        // As it was before this one was accepted, not as it was when the wait began.
        let next = poll_fn(|cx| {
            let age = age.load(Ordering::SeqCst);
            socket.poll_accept(cx).map_ok(|accepted| (accepted, age))
        });
        let report = match next.await {
            Ok(((stream, remote), age)) => match stream.local_addr() {
                Ok(local) => Report::Accepted { stream, via, local, remote, age },
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
