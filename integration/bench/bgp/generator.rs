//! The neighbors: sessions of a scenario in one process, which send their routes and check every route they get.
//!
//! One line of JSON on standard output for each step; the next step begins when a line comes on standard input.

use std::{
    cell::RefCell,
    collections::HashSet,
    io::Write as _,
    path::PathBuf,
    rc::Rc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, tcp::OwnedWriteHalf},
    sync::{Semaphore, mpsc},
    task::LocalSet,
    time::{sleep, timeout},
};

use super::{
    scenario::{AS, Role, Scenario, TARGET, Then},
    wire::{self, KEEPALIVE, NOTIFICATION, OPEN, Prefix, Said, UPDATE, message, read_update},
};

/// Handshakes at a time: the smallest listen backlog among the daemons is 5.
const AT_A_TIME: usize = 4;
/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(180);
/// Nothing may come for so long before tables are compared.
const QUIET: Duration = Duration::from_millis(300);

/// The outcome of a step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// What was wrong; empty: exact.
    pub(crate) wrong: String,
}

/// What one session knows.
#[derive(Debug, Default)]
struct Table {
    /// A bit for each prefix of the scenario.
    bits: Vec<u64>,
    count: usize,
    /// Own prefixes that came back: needless, not wrong.
    echo: usize,
    strange: usize,
    bad: usize,
    /// Of a replay, where prefixes are what the file has.
    known: HashSet<Prefix>,
}

struct State {
    scenario: Scenario,
    replay: bool,
    /// By session; senders' tables stay empty where nobody looks at them.
    tables: Vec<Table>,
    goal: Vec<usize>,
    /// Sessions not at their goal.
    missing: usize,
    first_up: Option<Instant>,
    up: usize,
    reached: Instant,
    last: Instant,
    lost: Vec<String>,
}

impl State {
    fn watches(&self, n: usize) -> bool {
        !self.scenario.receiver || n == self.scenario.senders
    }

    fn change(&mut self, n: usize, prefix: Prefix, said: Option<&Said>) {
        let at_goal = |s: &Self| s.tables[n].count == s.goal[n];
        let before = at_goal(self);
        if self.replay {
            let t = &mut self.tables[n];
            if said.is_some() {
                t.known.insert(prefix);
            } else {
                t.known.remove(&prefix);
            }
            t.count = t.known.len();
        } else {
            let Some((owner, k)) = self.scenario.owner(prefix) else {
                self.tables[n].strange += 1;
                return;
            };
            if owner == n {
                self.tables[n].echo += 1;
                return;
            }
            let good = said.is_none_or(|s| match self.scenario.role {
                Role::Client | Role::Internal => s.next_hop == Some(self.scenario.address(owner).to_bits()),
                Role::External => s.first_as == Some(AS),
            });
            let t = &mut self.tables[n];
            t.bad += usize::from(!good);
            let bit = owner * self.scenario.prefixes + k;
            let (word, mask) = (bit / 64, 1u64 << (bit % 64));
            if word >= t.bits.len() {
                t.bits.resize(word + 1, 0);
            }
            let there = t.bits[word] & mask != 0;
            match (there, said.is_some()) {
                (false, true) => t.count += 1,
                (true, false) => t.count -= 1,
                _ => {}
            }
            if said.is_some() {
                t.bits[word] |= mask;
            } else {
                t.bits[word] &= !mask;
            }
        }
        match (before, at_goal(self)) {
            (false, true) => {
                self.missing -= 1;
                self.reached = Instant::now();
            }
            (true, false) => self.missing += 1,
            _ => {}
        }
    }

    fn aim(&mut self, goals: impl Fn(usize) -> usize) {
        self.goal = (0..self.tables.len()).map(goals).collect();
        let watched = (0..self.tables.len()).filter(|n| self.watches(*n));
        self.missing = watched.filter(|n| self.tables[*n].count != self.goal[*n]).count();
    }

    fn wrong(&self) -> String {
        let sum = |f: fn(&Table) -> usize| self.tables.iter().map(f).sum::<usize>();
        let mut words = Vec::new();
        for (n, what) in [
            (self.missing, "sessions without the whole table"),
            (sum(|t| t.strange), "routes nobody announced"),
            (sum(|t| t.bad), "wrong next hops or AS paths"),
            (self.lost.len(), "sessions lost"),
        ] {
            if n > 0 {
                words.push(format!("{n} {what}"));
            }
        }
        words.extend(self.lost.first().cloned());
        words.join(", ")
    }
}

type Shared = Rc<RefCell<State>>;

/// Runs all steps. `mrt`: the replay of this table.
pub(crate) fn run(scenario: Scenario, mrt: Option<PathBuf>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, steps(scenario, mrt))
}

async fn steps(scenario: Scenario, mrt: Option<PathBuf>) -> Result<()> {
    let replay = mrt.as_deref().map(wire::from_mrt).transpose()?;
    let sessions = scenario.sessions();
    let now = Instant::now();
    let state = Rc::new(RefCell::new(State {
        replay: replay.is_some(),
        tables: (0..sessions).map(|_| Table::default()).collect(),
        goal: vec![0; sessions],
        missing: 0,
        first_up: None,
        up: 0,
        reached: now,
        last: now,
        lost: vec![],
        scenario: scenario.clone(),
    }));
    let total = replay.as_ref().map_or(scenario.senders * scenario.prefixes, |(_, p)| p.len());
    let kernel = scenario.then == Then::Kernel;
    let all_but_own = |n: usize| match n {
        _ if kernel => 0,
        _ if n < scenario.senders => total - scenario.prefixes,
        _ => total,
    };
    state.borrow_mut().aim(all_but_own);

    println!("ready");
    gate()?;
    let permits = Rc::new(Semaphore::new(AT_A_TIME));
    let mut send = Vec::new();
    for n in 0..sessions {
        let first = match &replay {
            Some((octets, _)) if n == 0 => octets.clone(),
            _ if n < scenario.senders => scenario.announce(n, scenario.prefixes),
            _ => Vec::new(),
        };
        let (tx, rx) = mpsc::unbounded_channel();
        send.push(tx);
        let (state, permits) = (Rc::clone(&state), Rc::clone(&permits));
        tokio::task::spawn_local(async move {
            if let Err(e) = session(n, Rc::clone(&state), permits, first, rx).await {
                state.borrow_mut().lost.push(format!("session {n}: {e:#}"));
            }
        });
    }
    if kernel {
        return say_up(&state).await;
    }
    settled(&state).await;
    let (from, to) = {
        let s = state.borrow();
        (s.first_up.unwrap_or(now), s.reached)
    };
    say(&state, "converge", to - from)?;

    match scenario.then {
        Then::Nothing | Then::Kernel => {}
        Then::Idle(seconds) => {
            sleep(Duration::from_secs(seconds)).await;
            say(&state, "idle", Duration::from_secs(seconds))?;
        }
        Then::Churn(count) => {
            for _ in 0..5 {
                for (name, octets, left) in [
                    ("withdraw", scenario.withdraw(0, count), total - count),
                    ("announce", scenario.announce(0, count), total),
                ] {
                    state.borrow_mut().aim(|_| left);
                    let from = Instant::now();
                    let sender = send.first().context("a sender")?;
                    sender.send(octets).map_err(|_| anyhow::anyhow!("the first session is gone"))?;
                    settled(&state).await;
                    let to = state.borrow().reached;
                    say(&state, name, to.saturating_duration_since(from))?;
                }
            }
        }
    }
    Ok(())
}

fn say(state: &Shared, name: &str, took: Duration) -> Result<()> {
    let step = Step { name: name.into(), seconds: took.as_secs_f64(), wrong: state.borrow().wrong() };
    println!("{}", serde_json::to_string(&step)?);
    std::io::stdout().flush()?;
    gate()
}

/// When all sessions are established, says when the first one was, in seconds since the epoch; the sessions go on until
/// the driver has seen its routes.
async fn say_up(state: &Shared) -> Result<()> {
    let start = Instant::now();
    let first = loop {
        sleep(Duration::from_millis(20)).await;
        let s = state.borrow();
        if let Some(first) = s.first_up.filter(|_| s.up == s.scenario.sessions()) {
            break first;
        }
        ensure!(s.lost.is_empty() && start.elapsed() < PATIENCE, "{} sessions up: {:?}", s.up, s.lost);
    };
    let at = SystemTime::now().duration_since(UNIX_EPOCH)?.saturating_sub(first.elapsed());
    println!(
        "{}",
        serde_json::to_string(&Step {
            name: "kernel".into(),
            seconds: at.as_secs_f64(),
            wrong: String::new()
        })?
    );
    std::io::stdout().flush()?;
    // Standard input is read elsewhere, because here the sessions must not wait.
    tokio::task::spawn_blocking(gate).await?
}

/// Waits for the word to go on. Nobody sends anything meanwhile, so the sessions may wait, too.
fn gate() -> Result<()> {
    ensure!(std::io::stdin().read_line(&mut String::new())? > 0, "the driver is gone");
    Ok(())
}

/// Until everybody is at the goal and nothing more comes, or patience ends.
async fn settled(state: &Shared) {
    let start = Instant::now();
    loop {
        sleep(Duration::from_millis(20)).await;
        let s = state.borrow();
        if start.elapsed() > PATIENCE || !s.lost.is_empty() || (s.missing == 0 && s.last.elapsed() > QUIET) {
            return;
        }
    }
}

async fn session(
    n: usize,
    state: Shared,
    permits: Rc<Semaphore>,
    first: Vec<u8>,
    mut orders: mpsc::UnboundedReceiver<Vec<u8>>,
) -> Result<()> {
    let (address, asn, hold) = {
        let s = &state.borrow().scenario;
        (s.address(n), s.asn(n), s.hold)
    };
    let permit = permits.acquire().await?;
    let socket = TcpSocket::new_v4()?;
    socket.bind((address, 0).into())?;
    let mut stream = timeout(PATIENCE, socket.connect((TARGET, 179).into())).await??;
    stream.set_nodelay(true)?;
    stream.write_all(&wire::open(asn, hold, address)).await?;
    let mut buf = Vec::with_capacity(1 << 16);
    expect(&mut stream, &mut buf, OPEN).await?;
    stream.write_all(&message(KEEPALIVE, &[])).await?;
    expect(&mut stream, &mut buf, KEEPALIVE).await?;
    drop(permit);
    {
        let mut s = state.borrow_mut();
        s.first_up.get_or_insert_with(Instant::now);
        s.up += 1;
    }

    let (mut reader, writer) = stream.into_split();
    let (alive, alive_rx) = mpsc::channel(1);
    tokio::task::spawn_local(writing(writer, first, alive_rx, hold, async move |w: &mut OwnedWriteHalf| {
        let octets = orders.recv().await?;
        w.write_all(&octets).await.ok()
    }));
    loop {
        take(n, &state, &mut buf)?;
        if reader.read_buf(&mut buf).await? == 0 {
            bail!("the daemon closed the connection");
        }
        // Full or not: what counts is that the sender is there.
        let _ = alive.try_send(());
    }
}

/// The routes, then a KEEPALIVE every third of the hold time and whatever is ordered, until the reader is gone.
async fn writing(
    mut writer: OwnedWriteHalf,
    first: Vec<u8>,
    mut alive: mpsc::Receiver<()>,
    hold: u16,
    mut order: impl AsyncFnMut(&mut OwnedWriteHalf) -> Option<()>,
) {
    if writer.write_all(&first).await.is_err() {
        return;
    }
    drop(first);
    let every = Duration::from_secs(u64::from(hold / 3));
    let mut next = tokio::time::Instant::now() + every;
    loop {
        tokio::select! {
            done = order(&mut writer) => if done.is_none() { return },
            more = alive.recv() => if more.is_none() { return },
            () = tokio::time::sleep_until(next) => {
                if writer.write_all(&message(KEEPALIVE, &[])).await.is_err() {
                    return;
                }
                next += every;
            }
        }
    }
}

async fn expect(stream: &mut TcpStream, buf: &mut Vec<u8>, kind: u8) -> Result<()> {
    loop {
        if let Some(len) = frame(buf)? {
            let got = buf.get(18).copied();
            ensure!(got == Some(kind), "message type {got:?}, {kind} expected: {:?}", buf.get(19..len));
            buf.drain(..len);
            return Ok(());
        }
        ensure!(timeout(PATIENCE, stream.read_buf(buf)).await?? > 0, "the daemon closed the connection");
    }
}

fn frame(buf: &[u8]) -> Result<Option<usize>> {
    let Some([hi, lo]) = buf.get(16..18) else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([*hi, *lo]));
    ensure!(len >= 19, "a message of {len} octets");
    Ok((len <= buf.len()).then_some(len))
}

/// Reads the complete messages in the buffer.
fn take(n: usize, state: &Shared, buf: &mut Vec<u8>) -> Result<()> {
    let mut at = 0;
    let mut s = state.borrow_mut();
    let watched = s.watches(n);
    while let Some(rest) = buf.get(at..)
        && let Some(len) = frame(rest)?
    {
        let body = rest.get(19..len).unwrap_or_default();
        match rest.get(18) {
            Some(&UPDATE) => {
                s.last = Instant::now();
                if watched {
                    let cell = RefCell::new(&mut *s);
                    read_update(
                        body,
                        |p| cell.borrow_mut().change(n, p, None),
                        |p, said| cell.borrow_mut().change(n, p, Some(said)),
                    )
                    .context("a malformed UPDATE")?;
                }
            }
            Some(&NOTIFICATION) => bail!("NOTIFICATION {body:?}"),
            _ => {}
        }
        at += len;
    }
    buf.drain(..at);
    Ok(())
}
