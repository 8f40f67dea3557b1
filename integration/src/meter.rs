//! Counts what gets lost: numbered UDP packets between namespaces, a few hundred a second for each pair, until stopped.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use brindle_kernel::netns::NetNs;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

const PORT: u16 = 7_007;
/// Between two packets of a pair.
const EVERY: Duration = Duration::from_millis(4);
/// After the last packet was sent, for those under way.
const GRACE: Duration = Duration::from_secs(2);

/// What became of the packets of one direction of a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    pub from: String,
    pub to: String,
    pub sent: u64,
    pub lost: u64,
    /// The longest time without any, milliseconds.
    pub gap: u64,
}

/// Packets under way in every direction between some places.
#[derive(Debug)]
pub struct Meter {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
    receivers: Vec<JoinHandle<Vec<(u64, Duration)>>>,
    /// Names, and packets sent, of each direction.
    pairs: Vec<(String, String, Arc<AtomicU64>)>,
    places: usize,
}

impl Meter {
    /// Starts: every place sends to every other. A place is a name, its namespace and its address.
    pub fn start(places: &[(&str, &NetNs, std::net::IpAddr)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut senders, mut receivers, mut pairs) = (vec![], vec![], vec![]);
        let sockets: Vec<UdpSocket> =
            places.iter().map(|(_, ns, a)| socket(ns, SocketAddr::from((*a, PORT)))).collect();
        for socket in sockets {
            let (stop, n) = (Arc::clone(&stop), places.len());
            receivers.push(thread::spawn(move || receive(&socket, n, &stop)));
        }
        for (from, (name, ns, address)) in (0u64..).zip(places) {
            let socket = socket(ns, SocketAddr::from((*address, 0)));
            let mut to = vec![];
            for (other, _, address) in places.iter().filter(|(other, ..)| other != name) {
                let sent = Arc::new(AtomicU64::new(0));
                pairs.push(((*name).to_owned(), (*other).to_owned(), Arc::clone(&sent)));
                to.push((SocketAddr::from((*address, PORT)), sent));
            }
            let stop = Arc::clone(&stop);
            senders.push(thread::spawn(move || send(&socket, from, &to, &stop)));
        }
        Self { stop, senders, receivers, pairs, places: places.len() }
    }

    /// Stops sending, waits for what is under way, and counts.
    pub fn stop(self) -> Vec<Count> {
        self.stop.store(true, Ordering::Relaxed);
        for s in self.senders {
            s.join().expect("a sender does not panic");
        }
        let heard: Vec<Vec<(u64, Duration)>> =
            self.receivers.into_iter().map(|r| r.join().expect("a receiver does not panic")).collect();
        let others = self.places - 1;
        let counts = self.pairs.iter().enumerate().map(|(i, (from, to, sent))| {
            let (from_n, nth) = (i / others, i % others);
            let to_n = if nth < from_n { nth } else { nth + 1 };
            let (got, gap) = heard[to_n][from_n];
            let sent = sent.load(Ordering::Relaxed);
            let gap = u64::try_from(gap.as_millis()).unwrap_or(u64::MAX);
            Count { from: from.clone(), to: to.clone(), sent, lost: sent - got, gap }
        });
        counts.collect()
    }
}

fn socket(ns: &NetNs, at: SocketAddr) -> UdpSocket {
    let socket = ns.run(|| UdpSocket::bind(at)).expect("the namespace is alive");
    let socket = socket.unwrap_or_else(|e| panic!("{at}: {e}"));
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a socket has a time limit");
    // Room for all that comes while the machine lets the reader wait: the meter itself must lose nothing.
    setsockopt(&socket, RcvBufForce, &(64 << 20)).expect("a test of namespaces runs as root");
    socket
}

fn send(socket: &UdpSocket, from: u64, to: &[(SocketAddr, Arc<AtomicU64>)], stop: &AtomicBool) {
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        for (address, sent) in to {
            // What the kernel refuses to send (no route) is lost as well as what it sends to nowhere.
            let _ = socket.send_to(&from.to_be_bytes(), address);
            sent.fetch_add(1, Ordering::Relaxed);
        }
        next += EVERY;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// How many came from each place, and the longest time without any, from the first to the last.
fn receive(socket: &UdpSocket, places: usize, stop: &AtomicBool) -> Vec<(u64, Duration)> {
    let mut all = vec![(0, Duration::ZERO); places];
    let mut last: Vec<Option<Instant>> = vec![None; places];
    let mut buf = [0; 64];
    let mut until = None;
    while until.is_none_or(|u| Instant::now() < u) {
        if stop.load(Ordering::Relaxed) && until.is_none() {
            until = Some(Instant::now() + GRACE);
        }
        let Ok((8, _)) = socket.recv_from(&mut buf) else { continue };
        let from = buf
            .first_chunk::<8>()
            .map_or(usize::MAX, |n| usize::try_from(u64::from_be_bytes(*n)).unwrap_or(usize::MAX));
        if let (Some((n, gap)), Some(last)) = (all.get_mut(from), last.get_mut(from)) {
            let now = Instant::now();
            *n += 1;
            *gap = (*gap).max(last.replace(now).map_or(Duration::ZERO, |l| now - l));
        }
    }
    all
}
