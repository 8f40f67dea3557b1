//! Nodes in this process and peers made by hand, shared by the test programs.

#![allow(dead_code, reason = "not every test program uses every helper")]

pub(crate) mod program;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use brindle_bgpd::{Desired, FibStream, Running, spawn};
use brindle_bgpd_core::{
    speaker::{LocalRoute, PeerConfig, SpeakerConfig},
    wire::{AttrSet, Message, Notification, WireCx, frame::next_frame},
};
use brindle_config_core::status::PeerStatus;
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

pub(crate) const PORT: u16 = 1790;
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An address of this test process's own, so that runs side by side do not meet.
pub(crate) fn address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., a, b] = (std::process::id() % 60_000 + 256).to_be_bytes();
    Ipv4Addr::new(127, a, b, NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn route(prefix: &str) -> LocalRoute {
    LocalRoute { prefix: prefix.parse().unwrap(), next_hop: None, attributes: AttrSet::default() }
}

pub(crate) fn peer(of: Ipv4Addr, to: Ipv4Addr, asn: u32) -> PeerConfig {
    PeerConfig {
        port: PORT,
        local_address: Some(of.into()),
        connect_retry: 1,
        hold_time: 9,
        ..PeerConfig::new(to.to_string(), to.into(), asn)
    }
}

/// A daemon at an address.
pub(crate) struct Node {
    pub(crate) address: Ipv4Addr,
    pub(crate) desired: Desired,
    pub(crate) running: Running,
    pub(crate) fib: FibStream,
}

impl Node {
    pub(crate) async fn start(address: Ipv4Addr, asn: u32, peers: Vec<PeerConfig>, routes: &[&str]) -> Self {
        let (running, fib) = spawn(false);
        let desired = Desired {
            speaker: Some(SpeakerConfig { sync_settle: 1, ..SpeakerConfig::new(asn, address) }),
            listen: vec![SocketAddr::new(address.into(), PORT)],
            peers,
            routes: routes.iter().map(|r| route(r)).collect(),
            ..Desired::default()
        };
        let errors = running.handle.apply(desired.clone()).await.unwrap();
        assert_eq!(errors, []);
        Self { address, desired, running, fib }
    }

    pub(crate) async fn change(&mut self, edit: impl FnOnce(&mut Desired)) {
        edit(&mut self.desired);
        assert_eq!(self.running.handle.apply(self.desired.clone()).await.unwrap(), []);
    }

    pub(crate) async fn peer(&self, of: Ipv4Addr) -> PeerStatus {
        let status = self.running.handle.status().await.unwrap();
        status.peers.into_iter().find(|p| p.address == IpAddr::V4(of)).unwrap()
    }

    pub(crate) async fn established(&self, with: Ipv4Addr) {
        self.until(&format!("session with {with}"), async || {
            let p = self.peer(with).await;
            (p.state == "Established").then_some(()).ok_or(format!("{p:?}"))
        })
        .await;
    }

    pub(crate) async fn prefixes(&self) -> BTreeSet<String> {
        let rib = self.running.handle.rib(None).await.unwrap();
        rib.iter().filter(|p| p.best).map(|p| p.prefix.to_string()).collect()
    }

    pub(crate) async fn knows(&self, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|s| (*s).to_owned()).collect();
        self.until(&format!("exactly {expected:?}"), async || {
            let found = self.prefixes().await;
            (found == expected).then_some(()).ok_or(format!("{found:?}"))
        })
        .await;
    }

    pub(crate) async fn until(&self, what: &str, mut attempt: impl AsyncFnMut() -> Result<(), String>) {
        let start = Instant::now();
        while let Err(why) = attempt().await {
            assert!(start.elapsed() < PATIENCE, "{}: no {what}: {why}", self.address);
            // Paces the questions; the outcome does not depend on it.
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A peer made by hand.
pub(crate) struct Hand {
    pub(crate) stream: TcpStream,
    pub(crate) buf: BytesMut,
}

impl Hand {
    pub(crate) async fn connect(from: Ipv4Addr, to: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.into(), 0)).unwrap();
        let stream = socket.connect(SocketAddr::new(to.into(), PORT)).await.unwrap();
        Self { stream, buf: BytesMut::new() }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        // The daemon may have closed already; what it said is what counts.
        let _ = self.stream.write_all(bytes).await;
    }

    /// The next message; `None` when the connection is closed.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((_, len)) = next_frame(&self.buf, 4096).unwrap() {
                let frame = self.buf.split_to(len);
                return Some(
                    Message::parse(&frame, &WireCx { four_octet_as: true, ..WireCx::default() }).unwrap(),
                );
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buf)).await.expect("an answer");
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    pub(crate) async fn notification(&mut self) -> Notification {
        loop {
            match self.next().await {
                Some(Message::Notification(n)) => return n,
                Some(_) => {}
                None => panic!("closed without a NOTIFICATION"),
            }
        }
    }
}

pub(crate) fn bytes(message: &Message) -> Vec<u8> {
    let mut b = BytesMut::new();
    message.emit(&WireCx { four_octet_as: true, ..WireCx::default() }, &mut b).unwrap();
    b.to_vec()
}
