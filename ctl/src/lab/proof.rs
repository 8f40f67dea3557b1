//! The proof: every pod to every pod, a small packet and one of the pod's full MTU, both with DF (IPv6 never fragments
//! on the way); in each family the pods have. What was lost is
//! tried again a bounded number of times (an address may have to be resolved first); what stays lost keeps the
//! network's own words.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use brindle_kernel::icmp::{Answer, EchoSocket, ErrorKind, wait_readable};
use serde::Serialize;

/// Size of the small packet, with its IPv4 header.
const SMALL: usize = 84;
/// How long each try may take. The first one covers address resolution.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(400), Duration::from_millis(600), Duration::from_millis(1500)];
/// Packets sent before answers are read, so that no queue overflows.
const BURST: usize = 64;

/// A pod that takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prover {
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) segment: String,
    pub(crate) address: IpAddr,
    pub(crate) mtu: usize,
    /// Takes part as a sender.
    pub(crate) sends: bool,
    /// Takes part as a target.
    pub(crate) answers: bool,
}

/// Both packets of one direction; `None` = arrived, else why not.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Verdict {
    pub(crate) small: Option<String>,
    pub(crate) full: Option<String>,
}

impl Verdict {
    pub(crate) fn good(&self) -> bool {
        self.small.is_none() && self.full.is_none()
    }
}

/// What was proved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proof {
    pub(crate) provers: Vec<Prover>,
    /// `[from][to]`; `None` for pairs that were not asked for.
    pub(crate) cells: Vec<Vec<Option<Verdict>>>,
    pub(crate) took: Duration,
}

/// Totals and failures, as `-o json` says them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) pods: usize,
    /// Ordered pairs.
    pub(crate) pairs: usize,
    pub(crate) small: usize,
    pub(crate) full: usize,
    pub(crate) ok: bool,
    pub(crate) ms: u64,
    pub(crate) failures: Vec<Failure>,
}

/// One packet that did not arrive, or whose answer did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    pub(crate) from: String,
    pub(crate) to: String,
    /// `small` or `full`.
    pub(crate) size: &'static str,
    pub(crate) cause: String,
}

impl Proof {
    /// Adds another family's proof between the same pods: a pair is good when it is good in both.
    pub(crate) fn with(mut self, family: &str, other: Self) -> Self {
        let name = |why: Option<String>| why.map(|w| format!("{family}: {w}"));
        for (row, more) in self.cells.iter_mut().zip(other.cells) {
            for (cell, theirs) in row.iter_mut().zip(more) {
                let (Some(cell), Some(theirs)) = (cell.as_mut(), theirs) else { continue };
                cell.small = cell.small.take().or(name(theirs.small));
                cell.full = cell.full.take().or(name(theirs.full));
            }
        }
        self.took += other.took;
        self
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut s = Summary {
            pods: self.provers.len(),
            pairs: 0,
            small: 0,
            full: 0,
            ok: true,
            ms: u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            failures: Vec::new(),
        };
        for (from, row) in self.provers.iter().zip(&self.cells) {
            for (to, cell) in self.provers.iter().zip(row) {
                let Some(verdict) = cell else { continue };
                s.pairs += 1;
                for (size, lost) in [("small", &verdict.small), ("full", &verdict.full)] {
                    match (lost, size) {
                        (None, "small") => s.small += 1,
                        (None, _) => s.full += 1,
                        (Some(cause), size) => s.failures.push(Failure {
                            from: from.pod.clone(),
                            to: to.pod.clone(),
                            size,
                            cause: cause.clone(),
                        }),
                    }
                }
            }
        }
        s.ok = s.failures.is_empty();
        s
    }
}

/// One packet in flight or not yet sent.
struct Probe {
    from: usize,
    to: usize,
    full: bool,
    state: Fate,
}

enum Fate {
    Waiting,
    Arrived,
    /// Refused for good: a retry would change nothing.
    Refused(String),
    /// Lost so far, with the last thing heard.
    Lost(String),
}

/// Runs the proof. `sockets[i]` must have been opened in the namespace of `provers[i]`.
pub(crate) fn prove(provers: Vec<Prover>, sockets: &[EchoSocket], id: u16) -> Result<Proof> {
    let start = Instant::now();
    let n = provers.len();
    let mut probes = Vec::new();
    // Neighbours in the list never send to the same target in a row: the load moves round the lab.
    for step in 1..n.max(1) {
        for from in 0..n {
            let to = (from + step) % n;
            let wanted =
                provers.get(from).is_some_and(|p| p.sends) && provers.get(to).is_some_and(|p| p.answers);
            if wanted {
                for full in [false, true] {
                    probes.push(Probe { from, to, full, state: Fate::Waiting });
                }
            }
        }
    }
    let mut index = vec![vec![[None; 2]; n]; n];
    for (i, p) in probes.iter().enumerate() {
        if let Some(slot) = index.get_mut(p.from).and_then(|r| r.get_mut(p.to)) {
            slot[usize::from(p.full)] = Some(i);
        }
    }
    let mut run = Run { provers: &provers, sockets, id, probes, index };
    for patience in PATIENCE {
        if run.attempt(patience)? == 0 {
            break;
        }
    }
    let probes = run.probes;
    let mut cells = vec![vec![None; n]; n];
    for p in probes {
        let Some(cell) = cells.get_mut(p.from).and_then(|r| r.get_mut(p.to)) else { continue };
        let verdict: &mut Verdict = cell.get_or_insert_default();
        let lost = match p.state {
            Fate::Arrived => None,
            Fate::Waiting => Some("no answer".to_owned()),
            Fate::Refused(why) | Fate::Lost(why) => Some(why),
        };
        if p.full {
            verdict.full = lost;
        } else {
            verdict.small = lost;
        }
    }
    Ok(Proof { provers, cells, took: start.elapsed() })
}

struct Run<'a> {
    provers: &'a [Prover],
    sockets: &'a [EchoSocket],
    id: u16,
    probes: Vec<Probe>,
    /// `[from][to][full]` → probe.
    index: Vec<Vec<[Option<usize>; 2]>>,
}

impl Run<'_> {
    /// Sends what has not arrived and waits; returns how many are still missing and worth another try.
    fn attempt(&mut self, patience: Duration) -> Result<usize> {
        let mut unread = 0;
        for i in 0..self.probes.len() {
            self.send(i);
            unread += 1;
            if unread >= BURST {
                self.drain(Duration::ZERO)?;
                unread = 0;
            }
        }
        let deadline = Instant::now() + patience;
        loop {
            self.drain(Duration::ZERO)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if self.missing(|f| matches!(f, Fate::Waiting)) == 0 || left.is_zero() {
                break;
            }
            self.drain(left)?;
        }
        Ok(self.missing(|f| matches!(f, Fate::Waiting | Fate::Lost(_))))
    }

    fn missing(&self, which: impl Fn(&Fate) -> bool) -> usize {
        self.probes.iter().filter(|p| which(&p.state)).count()
    }

    fn send(&mut self, i: usize) {
        let Some(p) = self.probes.get_mut(i) else { return };
        if matches!(p.state, Fate::Arrived | Fate::Refused(_)) {
            return;
        }
        let (Some(from), Some(to), Some(socket)) =
            (self.provers.get(p.from), self.provers.get(p.to), self.sockets.get(p.from))
        else {
            return;
        };
        let size = if p.full { from.mtu } else { SMALL };
        // The sequence number says which target and size an answer is about.
        let seq = u16::try_from(p.to * 2 + usize::from(p.full)).unwrap_or(u16::MAX);
        p.state = match socket.send(to.address, self.id, seq, size) {
            Ok(()) => Fate::Waiting,
            Err(e) if e.raw_os_error() == Some(EMSGSIZE) => {
                Fate::Refused(format!("{size} bytes do not fit the path, says {}", from.pod))
            }
            Err(e) => Fate::Lost(format!("{} cannot send: {e}", from.pod)),
        };
    }

    fn drain(&mut self, wait: Duration) -> Result<()> {
        for i in wait_readable(self.sockets, wait).context("cannot wait for answers")? {
            let Some(socket) = self.sockets.get(i) else { continue };
            loop {
                match socket.recv() {
                    Ok(Some(answer)) => self.answer(i, answer),
                    Ok(None) => break,
                    // A pending error of an earlier send; what it is about is said by the ICMP message itself.
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, from: usize, answer: Answer) {
        let (to, id, seq, fate) = match answer {
            Answer::Reply { from: target, id, seq, len } => {
                let size = self.provers.get(from).map_or(0, |p| if seq % 2 == 1 { p.mtu } else { SMALL });
                let fate = if len == size {
                    Fate::Arrived
                } else {
                    Fate::Lost(format!("{size} bytes sent, {len} came back"))
                };
                (target, id, seq, fate)
            }
            Answer::Error { reporter, to, id, seq, kind } => {
                let fate = match kind {
                    ErrorKind::FragNeeded(mtu) => {
                        Fate::Refused(format!("too big for the path: {reporter} takes {mtu} bytes"))
                    }
                    ErrorKind::Unreachable(code) => {
                        Fate::Lost(format!("{reporter} says {}", unreachable(code)))
                    }
                    ErrorKind::TimeExceeded => {
                        Fate::Lost(format!("{reporter} says time exceeded: a routing loop"))
                    }
                };
                (to, id, seq, fate)
            }
        };
        let target = usize::from(seq / 2);
        if id != self.id || self.provers.get(target).is_none_or(|p| p.address != to) {
            return;
        }
        let probe = self.index.get(from).and_then(|r| r.get(target)).and_then(|c| c[usize::from(seq % 2)]);
        if let Some(probe) = probe.and_then(|i| self.probes.get_mut(i))
            && !matches!(probe.state, Fate::Arrived)
        {
            probe.state = fate;
        }
    }
}

/// `EMSGSIZE` of Linux.
const EMSGSIZE: i32 = 90;

/// The words for an ICMP unreachable code (RFC 792, RFC 1122, RFC 1812).
fn unreachable(code: u8) -> String {
    match code {
        0 => "network unreachable".into(),
        1 => "host unreachable".into(),
        2 => "protocol unreachable".into(),
        3 => "port unreachable".into(),
        9 | 10 | 13 => "administratively prohibited".into(),
        code => format!("unreachable (code {code})"),
    }
}
