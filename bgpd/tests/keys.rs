//! TCP-MD5 where several peers have one address: the kernel has one key for it on each socket, and nobody comes in with
//! another peer's, or with none.

mod support;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use brindle_bgpd::{Desired, Running, spawn};
use brindle_bgpd_core::{
    speaker::{PeerConfig, SpeakerConfig},
    wire::Message,
};
use bytes::BytesMut;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;

use self::support::{Hand, PATIENCE, address};

/// Who has no connection by then is refused.
const REFUSED: Duration = Duration::from_millis(500);

/// Whom they connect from, and our two addresses.
struct Place {
    them: Ipv4Addr,
    ours: [Ipv4Addr; 2],
    port: u16,
}

impl Place {
    fn new() -> Self {
        // All of 127.0.0.0/8 is listened on: a port nobody has.
        let free = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        Self { them: address(), ours: [address(), address()], port: free }
    }

    /// Two that wait for connections from one address: at our first address without a key, at the second with one.
    async fn listen(&self, at: &[Ipv4Addr]) -> Running {
        let (running, _fib) = spawn(false);
        let peer = |n: usize, password: Option<&str>| PeerConfig {
            port: 1 + n as u16,
            local_address: Some(self.ours[n].into()),
            passive: true,
            password: password.map(Into::into),
            ..PeerConfig::new(format!("peer{n}"), self.them.into(), 64513)
        };
        let desired = Desired {
            speaker: Some(SpeakerConfig::new(64512, self.ours[0])),
            listen: at.iter().map(|a| SocketAddr::new((*a).into(), self.port)).collect(),
            peers: vec![peer(0, None), peer(1, Some("k"))],
            ..Desired::default()
        };
        assert_eq!(running.handle.apply(desired).await.unwrap(), []);
        running
    }

    /// Who connects, if the kernel lets him.
    fn connect(&self, to: usize, key: Option<&str>, limit: Duration) -> Option<Hand> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        brindle_kernel::tcp::set_md5(&socket, self.ours[to].into(), key.map(str::as_bytes)).unwrap();
        socket.bind(&SocketAddr::new(self.them.into(), 0).into()).unwrap();
        let to = SocketAddr::new(self.ours[to].into(), self.port);
        socket.connect_timeout(&to.into(), limit).ok()?;
        socket.set_nonblocking(true).unwrap();
        Some(Hand { stream: TcpStream::from_std(socket.into()).unwrap(), buf: BytesMut::new() })
    }

    async fn is_greeted(&self, to: usize, key: Option<&str>) -> bool {
        self.is_greeted_within(to, key, PATIENCE).await
    }

    async fn is_greeted_within(&self, to: usize, key: Option<&str>, limit: Duration) -> bool {
        match self.connect(to, key, limit) {
            Some(mut hand) => matches!(hand.next().await, Some(Message::Open(_))),
            None => false,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_key_gets_in_nowhere_where_one_is_wanted_though_the_socket_asks_for_none() {
    let place = Place::new();
    let _us = place.listen(&[Ipv4Addr::UNSPECIFIED]).await;
    assert!(place.is_greeted(0, None).await);
    // The one socket has no key for this address, since its first peer has none.
    let mut stranger = place.connect(1, None, PATIENCE).expect("the kernel lets it in");
    assert!(stranger.next().await.is_none(), "without a word");
}

/// One thread: what waits to be accepted waits until the test does.
#[tokio::test]
async fn who_connected_before_there_was_a_key_does_not_get_in_with_it() {
    let place = Place::new();
    let us = place.listen(&[place.ours[1]]).await;
    let newcomer = address();
    let desired = |key: &str| Desired {
        speaker: Some(SpeakerConfig::new(64512, place.ours[0])),
        listen: vec![SocketAddr::new(place.ours[1].into(), place.port)],
        peers: vec![PeerConfig {
            passive: true,
            password: Some(key.into()),
            ..PeerConfig::new("newcomer", newcomer.into(), 64513)
        }],
        ..Desired::default()
    };
    let place = Place { them: newcomer, ..place };
    // Without a key, since there is none yet; then with the old one when there is another.
    for (with, key) in [(None, "k"), (Some("k"), "l")] {
        let mut early = place.connect(1, with, PATIENCE).expect("the kernel lets it in");
        assert_eq!(us.handle.apply(desired(key)).await.unwrap(), []);
        assert!(early.next().await.is_none(), "without a word");
        // The kernel asks for the key from now on; who has it gets in.
        let mut late = place.connect(1, Some(key), PATIENCE).expect("with the key");
        assert!(matches!(late.next().await, Some(Message::Open(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_at_our_addresses_have_each_the_key_of_the_peer_that_connects_there() {
    let place = Place::new();
    let _us = place.listen(&place.ours).await;
    assert!(place.is_greeted(0, None).await && place.is_greeted(1, Some("k")).await);
    for (to, key) in [(1, None), (1, Some("other")), (0, Some("k"))] {
        assert!(!place.is_greeted_within(to, key, REFUSED).await, "{to} {key:?}");
    }
}
