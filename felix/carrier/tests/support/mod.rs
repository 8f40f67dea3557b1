//! Two nodes on two segments with a router between them, each node a network namespace with a carrier of its own.
//!
//! ```text
//!   192.168.1.0/26  a  10.1.0.2 ── 10.1.0.1  r  10.2.0.1 ── 10.2.0.2  b  192.168.2.0/26
//! ```
//! Everything is removed when the [`World`] goes, on panic too.
#![allow(dead_code, reason = "every test binary uses a part of it")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use brindle_carrier::control::{Carrier, Client, Config, How, Launch, Route as Carried, Stats, ensure};
use brindle_kernel::daemon::Watched;
use brindle_kernel::icmp::{Answer, EchoSocket, wait_readable};
use brindle_kernel::netlink::{Addr, Route, Rtnl, Veth, VethPeer};
use brindle_kernel::netns::NetNs;
use brindle_kernel::sysctl;

pub(crate) const A: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
pub(crate) const ROUTER_B: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
pub(crate) const INNER_A: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 0);
pub(crate) const INNER_B: Ipv4Addr = Ipv4Addr::new(192, 168, 2, 0);
pub(crate) const MTU: u16 = 1480;
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_brindle-ipip");

/// Which node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    A,
    B,
}

impl Side {
    pub(crate) fn outer(self) -> Ipv4Addr {
        if self == Side::A { A } else { B }
    }

    pub(crate) fn inner(self) -> Ipv4Addr {
        if self == Side::A { INNER_A } else { INNER_B }
    }

    fn letter(self) -> char {
        if self == Side::A { 'a' } else { 'b' }
    }

    fn other(self) -> Side {
        if self == Side::A { Side::B } else { Side::A }
    }
}

pub(crate) struct World {
    prefix: String,
    pub(crate) dir: PathBuf,
    children: Vec<Child>,
}

impl World {
    /// Namespaces, links and underlay routes; no tunnel yet.
    pub(crate) fn new(tag: &str) -> World {
        let prefix = format!("bt-{}-{tag}", std::process::id());
        let dir = std::env::temp_dir().join(&prefix);
        let world = World { prefix, dir, children: Vec::new() };
        fs::create_dir_all(&world.dir).unwrap();
        for n in ['a', 'b', 'r'] {
            NetNs::create(&world.name(n)).expect("root is needed to make a network namespace");
            world.ns(n).run(|| Rtnl::open().unwrap().set_up("lo").unwrap()).unwrap();
        }
        for side in [Side::A, Side::B] {
            let (near, far) = ("eth0", format!("r{}", side.letter()));
            let router = world.ns('r');
            let gateway = Ipv4Addr::from_bits(side.outer().to_bits() - 1);
            world.run(side, || {
                let peer = VethPeer { name: &far, mac: None, netns: Some(&router) };
                let mut k = Rtnl::open().unwrap();
                k.add_veth(&Veth { name: near, mac: None, mtu: None, up: true, peer }).unwrap();
                address(&mut k, near, &format!("{}/24", side.outer()));
                sysctl::set("net/ipv4/conf/all/rp_filter", "1").unwrap();
            });
            router
                .run(|| {
                    let mut k = Rtnl::open().unwrap();
                    k.set_up(far.as_str()).unwrap();
                    address(&mut k, &far, &format!("{gateway}/24"));
                    sysctl::set("net/ipv4/ip_forward", "1").unwrap();
                })
                .unwrap();
            world.run(side, || {
                let mut k = Rtnl::open().unwrap();
                let all = Route::new("0.0.0.0/0".parse().unwrap()).via(gateway.into(), None, false);
                k.add_route(&all).unwrap();
            });
        }
        world
    }

    /// Both carriers at work, `tunl0` at both ends.
    pub(crate) fn with_carriers(tag: &str) -> World {
        let mut world = World::new(tag);
        for side in [Side::A, Side::B] {
            assert_eq!(world.start(side, "tunl0"), How::Started);
            world.dress(side, "tunl0");
        }
        world
    }

    fn name(&self, letter: char) -> String {
        format!("{}-{letter}", self.prefix)
    }

    pub(crate) fn ns(&self, letter: char) -> NetNs {
        NetNs::named(&self.name(letter)).unwrap()
    }

    pub(crate) fn run<T: Send>(&self, side: Side, f: impl FnOnce() -> T + Send) -> T {
        self.ns(side.letter()).run(f).unwrap()
    }

    pub(crate) fn launch(&self, side: Side, device: &str) -> Launch {
        Launch {
            program: PathBuf::from(PROGRAM),
            device: device.to_owned(),
            local: side.outer(),
            control: self.dir.join(format!("{}.sock", side.letter())),
            pid_file: self.dir.join(format!("{}.pid", side.letter())),
            extra: vec!["--log-level".to_owned(), "warn".to_owned()],
        }
    }

    pub(crate) fn ensure(&self, side: Side, device: &str) -> Carrier {
        let launch = self.launch(side, device);
        self.run(side, || ensure(&launch)).unwrap()
    }

    /// Starts (or adopts) and configures the carrier of a node.
    pub(crate) fn start(&mut self, side: Side, device: &str) -> How {
        let mut carrier = self.ensure(side, device);
        carrier.client.set_config(&config(side)).unwrap();
        self.children.extend(carrier.child);
        carrier.how
    }

    /// Device up, MTU, address, route: what felix does.
    pub(crate) fn dress(&self, side: Side, device: &str) {
        let block = format!("{}/26", side.other().inner());
        self.run(side, || {
            let mut k = Rtnl::open().unwrap();
            k.set_mtu(device, u32::from(MTU)).unwrap();
            k.set_up(device).unwrap();
            address(&mut k, device, &format!("{}/32", side.inner()));
            let index = k.link_by_name(device).unwrap().unwrap().index;
            let via = side.other().outer();
            let route = Route::new(block.parse().unwrap()).via(via.into(), Some(index), true);
            k.add_route(&route).unwrap();
        });
    }

    pub(crate) fn client(&self, side: Side) -> Client {
        Client::connect(&self.launch(side, "tunl0").control).unwrap()
    }

    pub(crate) fn stats(&self, side: Side) -> Stats {
        self.client(side).stats().unwrap()
    }

    pub(crate) fn pid(&self, side: Side) -> u32 {
        self.client(side).hello().unwrap().pid
    }

    pub(crate) fn has_device(&self, side: Side, device: &str) -> bool {
        self.run(side, || Rtnl::open().unwrap().link_by_name(device).unwrap().is_some())
    }

    /// One echo of `len` bytes with DF from node `from` to `to`; none when there is no answer within a second.
    pub(crate) fn echo(&self, from: Side, to: Ipv4Addr, len: usize) -> Option<Answer> {
        self.answer(from, to, len, Duration::from_secs(1))
    }

    fn answer(&self, from: Side, to: Ipv4Addr, len: usize, limit: Duration) -> Option<Answer> {
        self.run(from, || {
            let socket = EchoSocket::open().unwrap();
            let id = u16::try_from(std::process::id() & 0xffff).unwrap();
            socket.send(to, id, 1, len).ok()?;
            let sockets = [socket];
            let end = Instant::now() + limit;
            loop {
                let left = end.saturating_duration_since(Instant::now());
                if wait_readable(&sockets, left).unwrap().is_empty() {
                    return None;
                }
                match sockets[0].recv().unwrap() {
                    Some(answer @ (Answer::Reply { id: i, .. } | Answer::Error { id: i, .. })) if i == id => {
                        return Some(answer);
                    }
                    _ => {}
                }
            }
        })
    }

    pub(crate) fn replies(&self, from: Side, to: Ipv4Addr, len: usize) -> bool {
        // An answer takes as long as a busy machine lets it.
        let answer = self.answer(from, to, len, Duration::from_secs(10));
        matches!(answer, Some(Answer::Reply { len: l, .. }) if l == len)
    }

    /// Whether there is no reply within a second.
    pub(crate) fn is_silent(&self, from: Side, to: Ipv4Addr, len: usize) -> bool {
        !matches!(self.echo(from, to, len), Some(Answer::Reply { .. }))
    }

    /// Leaves a carrier's process to be ended with the world.
    pub(crate) fn adopt_child(&mut self, carrier: Carrier) {
        self.children.extend(carrier.child);
    }

    /// Kills a process and waits for its end.
    pub(crate) fn kill(&self, pid: u32) {
        let process = Watched::open(i32::try_from(pid).unwrap()).unwrap();
        process.kill().unwrap();
        assert!(process.wait_gone(Duration::from_secs(20)).unwrap());
    }

    /// The keeper of a node's carrier.
    pub(crate) fn keeper(&self, side: Side) -> u32 {
        let file = brindle_carrier::keeper::lock_file(&self.launch(side, "tunl0").pid_file);
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for side in [Side::A, Side::B] {
            // One adopted from a parent that was killed is not our child any more.
            if let Ok(client) = Client::connect(&self.launch(side, "tunl0").control) {
                let _ = client.shutdown(false);
            }
        }
        for n in ['a', 'b', 'r'] {
            let _ = NetNs::delete(&self.name(n));
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

pub(crate) fn config(side: Side) -> Config {
    let other = side.other();
    Config {
        mtu: MTU,
        routes: vec![Carried {
            dst: format!("{}/26", other.inner()).parse().unwrap(),
            via: vec![other.outer()],
        }],
        sources: vec![other.outer().into()],
    }
}

pub(crate) fn address(k: &mut Rtnl, device: &str, net: &str) {
    let index = k.link_by_name(device).unwrap().unwrap().index;
    k.add_addr(&Addr::new(index, net.parse().unwrap())).unwrap();
}

pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "waited 20 s for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Sends `bytes` pseudo-random bytes from `from` to `to` over TCP; both ends must agree on what was said.
pub(crate) fn transfer(world: &World, from: Side, to: Side, bytes: usize) {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    let listener = world.run(to, || TcpListener::bind((to.inner(), 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            let mut expected = Noise(1);
            let (mut buffer, mut total) = (vec![0; 1 << 16], 0usize);
            loop {
                let n = stream.read(&mut buffer).unwrap();
                if n == 0 {
                    return total;
                }
                for (i, byte) in buffer[..n].iter().enumerate() {
                    assert_eq!(*byte, expected.next(), "byte {} differs", total + i);
                }
                total += n;
            }
        });
        let mut stream = world.run(from, || TcpStream::connect((to.inner(), port)).unwrap());
        let mut noise = Noise(1);
        let mut left = bytes;
        while left > 0 {
            let piece: Vec<u8> = (0..left.min(1 << 16)).map(|_| noise.next()).collect();
            stream.write_all(&piece).unwrap();
            left -= piece.len();
        }
        drop(stream);
        assert_eq!(receiver.join().unwrap(), bytes);
    });
}

/// Bytes that do not repeat within any plausible reordering (xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_le_bytes()[3]
    }
}
