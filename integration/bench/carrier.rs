//! The IPIP carrier beside plain routing and, where the kernel has it, kernel ipip, in one run. Two nodes with a
//! router between them; needs root, works in namespaces of its own.
//!
//! `cargo run --release -p brindle-integration --bin bench-carrier [-- SECONDS [RUNS]]`
#![allow(clippy::print_stdout, reason = "the table is the product")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use brindle_carrier::control::{self, Carrier, Config, Launch};
use brindle_integration::{bins, netns::TestNs};
use brindle_kernel::{
    exec,
    netlink::{Addr, NetlinkError, Route, Rtnl, Veth, VethPeer},
    sysctl,
};

const MTU: u16 = 1480;
const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(10, 2, 0, 2)];
const ROUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1)];
/// Addresses behind the tunnel: one pair for the carrier, one for the kernel's ipip.
const CARRIED: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 1, 0), Ipv4Addr::new(192, 168, 2, 0)];
const KERNEL: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 3, 0), Ipv4Addr::new(192, 168, 4, 0)];
const CARRIER_DEVICE: &str = "brtun0";

struct Bench {
    nodes: [TestNs; 2],
    router: TestNs,
    carriers: Vec<Carrier>,
    dir: PathBuf,
    time: Duration,
    runs: usize,
}

impl Bench {
    fn new(time: Duration, runs: usize) -> Result<Bench> {
        let router = TestNs::new("router");
        let nodes = [TestNs::new("a"), TestNs::new("b")];
        for ((node, far), (outer, gateway)) in
            nodes.iter().zip(["ra", "rb"]).zip(OUTER.into_iter().zip(ROUTER))
        {
            let mut k = node.rtnl();
            let peer = VethPeer { name: far, mac: None, netns: Some(router.ns()) };
            k.add_veth(&Veth { name: "eth0", up: true, peer, ..Default::default() })?;
            let mut r = router.rtnl();
            r.set_up(far)?;
            address(&mut r, far, gateway, 24)?;
            address(&mut k, "eth0", outer, 24)?;
            k.add_route(&Route::new("0.0.0.0/0".parse()?).via(gateway.into(), None, false))?;
        }
        router.ns().run(|| sysctl::set("net/ipv4/ip_forward", "1"))??;
        let dir = std::env::temp_dir().join(format!("bt-{}-bench", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Bench { nodes, router, carriers: Vec::new(), dir, time, runs })
    }

    fn start_carriers(&mut self) -> Result<()> {
        for (i, node) in self.nodes.iter().enumerate() {
            let launch = Launch {
                program: bins::bin("brindle-ipip"),
                device: CARRIER_DEVICE.into(),
                local: OUTER[i],
                control: self.dir.join(format!("{i}.sock")),
                pid_file: self.dir.join(format!("{i}.pid")),
                extra: ["--log-level", "warn"].map(str::to_owned).into(),
            };
            let mut carrier = node.ns().run(|| control::ensure(&launch))??;
            let other = 1 - i;
            let dst = format!("{}/26", CARRIED[other]).parse()?;
            let routes = vec![control::Route { dst, via: vec![OUTER[other]] }];
            carrier.client.set_config(&Config { mtu: MTU, routes, sources: vec![OUTER[other].into()] })?;
            self.carriers.push(carrier);
            tunnel(&mut node.rtnl(), CARRIER_DEVICE, CARRIED, i)?;
        }
        Ok(())
    }

    /// False where the kernel has no ipip.
    fn start_kernel(&self) -> Result<bool> {
        for (i, node) in self.nodes.iter().enumerate() {
            let mut k = node.rtnl();
            match k.add_link_generic("tunl0", "ipip", None) {
                Err(e) if e.is_unsupported() => return Ok(false),
                Err(e) if !e.is_exists() => return Err(e.into()),
                _ => tunnel(&mut k, "tunl0", KERNEL, i)?,
            }
        }
        Ok(true)
    }

    /// Gbit/s of one TCP connection from the first node to an address of the second.
    fn tcp(&self, to: Ipv4Addr) -> Result<f64> {
        let listener = self.nodes[1].ns().run(|| TcpListener::bind((to, 0)))??;
        let to = listener.local_addr()?;
        let mut stream = self.nodes[0].ns().run(|| TcpStream::connect(to))??;
        let time = self.time;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(move || -> Result<f64> {
                let (mut stream, _) = listener.accept()?;
                let mut buffer = vec![0; 1 << 20];
                let (mut bytes, mut start) = (0usize, Instant::now());
                // The first tenth is the connection finding its speed.
                let warm = start + time / 10;
                loop {
                    let n = stream.read(&mut buffer)?;
                    if n == 0 {
                        break;
                    }
                    bytes += n;
                    if start < warm && Instant::now() >= warm {
                        (bytes, start) = (0, Instant::now());
                    }
                }
                Ok(bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
            });
            let piece = vec![0x5a; 1 << 17];
            let end = Instant::now() + time;
            while Instant::now() < end {
                stream.write_all(&piece)?;
            }
            drop(stream);
            receiver.join().expect("the receiver does not panic")
        })
    }

    /// Packets a second of 64 bytes of UDP payload, with at most `WINDOW` on the way: a sender that only fills
    /// queues to see them overflow would measure itself.
    fn small(&self, to: Ipv4Addr) -> Result<f64> {
        const WINDOW: usize = 256;
        let receiver = self.nodes[1].ns().run(|| UdpSocket::bind((to, 0)))??;
        receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
        let to = receiver.local_addr()?;
        let sender = self.nodes[0].ns().run(|| UdpSocket::bind("0.0.0.0:0"))??;
        sender.connect(to)?;
        let (done, arrived) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 128];
                while !done.load(Ordering::Relaxed) {
                    if receiver.recv(&mut buffer).is_ok() {
                        arrived.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let (start, mut sent, mut lost) = (Instant::now(), 0usize, 0usize);
            let mut moved = (0, start);
            while start.elapsed() < self.time {
                let seen = arrived.load(Ordering::Relaxed);
                if seen != moved.0 {
                    moved = (seen, Instant::now());
                } else if moved.1.elapsed() > Duration::from_millis(20) {
                    // What is still out after that long does not come any more.
                    lost = sent - seen;
                    moved.1 = Instant::now();
                }
                if sent - lost - seen.min(sent - lost) < WINDOW {
                    // A refusal is a loss.
                    drop(sender.send(&[0; 64]));
                    sent += 1;
                } else {
                    std::thread::yield_now();
                }
            }
            let rate = arrived.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
            done.store(true, Ordering::Relaxed);
            Ok(rate)
        })
    }

    /// Median round trip of a small UDP packet, in microseconds.
    fn round_trip(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<f64> {
        let echo = self.nodes[1].ns().run(|| UdpSocket::bind((to, 0)))??;
        let to: SocketAddr = echo.local_addr()?;
        let socket = self.nodes[0].ns().run(|| UdpSocket::bind((from, 0)))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        echo.set_read_timeout(Some(Duration::from_secs(2)))?;
        const ROUNDS: usize = 2000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut buffer = [0; 64];
                for _ in 0..ROUNDS {
                    let Ok((n, from)) = echo.recv_from(&mut buffer) else { return };
                    drop(echo.send_to(&buffer[..n], from));
                }
            });
            let mut times = Vec::with_capacity(ROUNDS);
            let mut buffer = [0; 64];
            for _ in 0..ROUNDS {
                let start = Instant::now();
                socket.send(&[7; 32])?;
                socket.recv(&mut buffer)?;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            Ok(median(times))
        })
    }

    fn repeat(&self, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
        Ok(median((0..self.runs).map(|_| measure()).collect::<Result<Vec<_>>>()?))
    }

    fn row(&self, name: &str, from: Ipv4Addr, to: Ipv4Addr) -> Result<Row> {
        Ok(Row {
            name: name.to_owned(),
            tcp: self.repeat(|| self.tcp(to))?,
            small: self.repeat(|| self.small(to))?,
            rtt: self.repeat(|| self.round_trip(from, to))?,
        })
    }

    /// Processor seconds the carriers have used, and packets they have moved: (outbound, inbound).
    fn carrier_cost(&mut self) -> Result<[(f64, u64); 2]> {
        let mut cost = [(0.0, 0); 2];
        for carrier in &mut self.carriers {
            let stats = carrier.client.stats()?;
            for (way, (name, packets)) in
                [("outbound", stats.outbound.packets), ("inbound", stats.inbound.packets)]
                    .into_iter()
                    .enumerate()
            {
                cost[way].0 += thread_seconds(carrier.hello.pid, name)?;
                cost[way].1 += packets;
            }
        }
        Ok(cost)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for carrier in self.carriers.drain(..) {
            drop(carrier.client.shutdown(false));
            if let Some(mut child) = carrier.child {
                drop(child.wait());
            }
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

struct Row {
    name: String,
    tcp: f64,
    small: f64,
    rtt: f64,
}

fn address(k: &mut Rtnl, device: &str, ip: Ipv4Addr, length: u8) -> Result<()> {
    let index = k.link_by_name(device)?.with_context(|| format!("no device {device}"))?.index;
    k.add_addr(&Addr::new(index, format!("{ip}/{length}").parse()?))?;
    Ok(())
}

/// Device up, MTU, address and route of node `i`.
fn tunnel(k: &mut Rtnl, device: &str, inner: [Ipv4Addr; 2], i: usize) -> Result<()> {
    k.set_mtu(device, u32::from(MTU))?;
    k.set_up(device)?;
    address(k, device, inner[i], 32)?;
    let index = k.link_by_name(device)?.context("it was there a moment ago")?.index;
    let block = format!("{}/26", inner[1 - i]).parse()?;
    k.add_route(&Route::new(block).via(OUTER[1 - i].into(), Some(index), true))
        .map_err(|e: NetlinkError| e.into())
}

/// User and system time of a thread.
fn thread_seconds(pid: u32, name: &str) -> Result<f64> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(task?.path().join("stat"))?;
        let (head, tail) = stat.rsplit_once(") ").context("stat")?;
        if head.ends_with(&format!("({name}")) {
            let fields: Vec<&str> = tail.split_whitespace().collect();
            let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
            return Ok(ticks / 100.0);
        }
    }
    anyhow::bail!("no thread {name} in process {pid}")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let time = Duration::from_secs(args.next().transpose()?.unwrap_or(3));
    let runs = usize::try_from(args.next().transpose()?.unwrap_or(3))?;
    ensure!(!time.is_zero() && runs > 0, "usage: bench-carrier [SECONDS [RUNS]], both at least 1");
    let mut bench = Bench::new(time, runs)?;
    let mut rows = vec![bench.row("plain routing, 64 KiB frames", OUTER[0], OUTER[1])?];
    // What is on a wire, and what every tunnel in user space must move: packets. The router cuts the frames.
    for link in ["ra", "rb"] {
        let args = ["-n", bench.router.name(), "link", "set", link, "gso_max_segs", "1"];
        exec::run("ip", args, None, Duration::from_secs(5))?.success()?;
    }
    rows.push(bench.row("plain routing, 1500-byte packets", OUTER[0], OUTER[1])?);
    bench.start_carriers()?;
    rows.push(bench.row("carrier", CARRIED[0], CARRIED[1])?);
    let cost = bench.carrier_cost()?;
    let kernel = bench.start_kernel()?;
    if kernel {
        rows.push(bench.row("kernel ipip", KERNEL[0], KERNEL[1])?);
    }
    let base = rows.iter().position(|r| r.name.contains("1500")).expect("the row was just made");
    let (base_tcp, base_small, base_rtt) = (rows[base].tcp, rows[base].small, rows[base].rtt);
    println!(
        "Two nodes, a router between them; median of {runs} runs of {} s; x = share of plain packets.\n",
        time.as_secs()
    );
    println!("| path | TCP Gbit/s | x | 64-byte UDP packets/s | x | round trip us | x |");
    println!("|---|---|---|---|---|---|---|");
    for r in &rows {
        println!(
            "| {} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} | {:.2} |",
            r.name,
            r.tcp,
            r.tcp / base_tcp,
            r.small,
            r.small / base_small,
            r.rtt,
            r.rtt / base_rtt
        );
    }
    if !kernel {
        println!("| kernel ipip | not measurable: this kernel has no ipip | | | | | |");
    }
    for (way, (seconds, packets)) in
        ["outbound (with all the kernel does down to the receiver's socket)", "inbound"].into_iter().zip(cost)
    {
        println!(
            "carrier, {way}: {:.2} us of processor time a packet ({packets} packets)",
            seconds * 1e6 / packets.max(1) as f64
        );
    }
    Ok(())
}
