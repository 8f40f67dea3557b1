//! The speaker task: the one owner of the [`Speaker`], of every connection's state and of the listening sockets.
//!
//! Each turn: wait for a report, an order, the end of a task, room in the FIB channel or the deadline; hand it to the
//! speaker; carry out its outputs in order; give idle writers their next chunk. Nothing in here waits for a peer.

mod defect;
mod links;
mod orders;
mod ready;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use brindle_admin::defect::guarded;
use brindle_bgpd_core::{
    speaker::{ConnId, Event, Input, LocalRoute, Output, PeerConfig, PeerId, Speaker, SpeakerConfig},
    time::Mono,
    wire::WireCx,
};
use brindle_config_core::status::bgp::BgpEvent;
use bytes::BytesMut;
use ipnet::IpNet;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, broadcast, mpsc, watch},
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use self::{defect::Defects, ready::Ready};
use crate::{
    conn::{self, Chunk, Exit, Mode, Report, Token},
    fib::FibQueue,
    handle::Order,
    health::is_client,
    import::Importer,
    listeners::Listeners,
    mrt::Archive,
    peers::services::Verdict,
    record::Recorder,
    tally::Tally,
    view,
};

/// A connection attempt is given up after this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Reports that are taken from the inbox and not yet to their end.
const REPORTS: usize = 8;
/// A turn ends after the message during which it has lasted so long; what is left of a report is for the next one. So
/// timers and all other connections have their turn whatever the messages of one peer cost.
const TURN: Duration = Duration::from_millis(50);

const SECOND: Duration = Duration::from_secs(1);
/// Warnings about one peer in ten seconds: each matters, but for those that a peer repeats.
const WARNINGS: u32 = 10;

// States as events name them.
const IDLE: &str = "Idle";
const ACTIVE: &str = "Active";
const ESTABLISHED: &str = "Established";

/// A connection, as long as the speaker knows it.
struct Link {
    token: Token,
    state: LinkState,
}

impl Link {
    /// Whether reports of its reader are still to be taken, or to be taken to their end.
    fn is_unread(&self) -> bool {
        matches!(&self.state, LinkState::Up(up) if up.ahead.available_permits() < conn::AHEAD)
    }
}

enum LinkState {
    Dialing(AbortHandle),
    Up(Up),
}

struct Up {
    socket: Arc<TcpStream>,
    mode: watch::Sender<Mode>,
    chunks: mpsc::Sender<Chunk>,
    /// How long the peer may take nothing from us.
    send_hold: watch::Sender<Duration>,
    /// How messages are written: without capabilities until negotiated.
    write: WireCx,
    /// Messages for the next chunk, ahead of updates.
    control: BytesMut,
    /// The speaker has updates to pull.
    pending: bool,
    /// The writer has a chunk.
    busy: bool,
    /// Of the reports its reader may be ahead of this task, those that are left.
    ahead: Arc<Semaphore>,
}

pub(crate) struct SpeakerTask {
    origin: Instant,
    /// `None` until told whom to speak for.
    speaker: Option<Speaker>,
    /// What was asked for last, to see what is new in the next order. Peers and routes are `None` as long as the
    /// speaker has not been told any: an empty set is news to it, too.
    identity: Option<SpeakerConfig>,
    peers: Option<Vec<PeerConfig>>,
    routes: Option<Vec<LocalRoute>>,
    /// What the configuration announces, and what is announced of the kernel's routes beside it.
    announced: Vec<LocalRoute>,
    importer: Option<Importer>,
    /// Routes to peers behind a gateway.
    statics: BTreeMap<IpNet, IpAddr>,
    /// What becomes of the addresses of services.
    services: Arc<[Verdict]>,
    /// Next hops that are not near, as the host's routes say.
    next_hops: BTreeMap<IpAddr, Option<u32>>,
    /// Devices towards next hops.
    /// `None`: nobody here knows of devices.
    devices: Option<BTreeMap<IpAddr, String>>,
    /// For the first speaker: an earlier run's routes are in the kernel.
    restarting: bool,
    links: HashMap<ConnId, Link>,
    by_token: HashMap<Token, ConnId>,
    tasks: JoinSet<Exit>,
    /// So that the end of a task by a panic is that of its connection.
    task_tokens: HashMap<Id, Token>,
    next_token: u64,
    next_accept: u64,
    /// When the present turn has lasted long enough.
    turn_ends: Instant,
    /// Reports that are not taken to their end.
    ready: Ready,
    /// Ends of connections of which something is still unread.
    exits: Vec<Exit>,
    outputs: VecDeque<Output>,
    /// Connections for which there may be something to write.
    dirty: Vec<ConnId>,
    /// What is being written.
    scratch: BytesMut,
    listeners: Listeners,
    fib: FibQueue,
    recorder: Option<Recorder>,
    refused: Refused,
    /// Lines about faulty UPDATEs and about warnings, by peer.
    faults: HashMap<PeerId, Sparse>,
    warnings: HashMap<PeerId, Sparse>,
    /// Why a peer is not up: what last sent it to Idle or Active.
    trouble: HashMap<PeerId, String>,
    tally: Tally,
    /// Sessions of clients that came up since the start.
    client_arrivals: u64,
    defects: Defects,
    /// Told to leave (RFC 8326).
    draining: bool,
    /// Those who watch.
    monitor: broadcast::Sender<BgpEvent>,
    /// Where what peers send is kept.
    archive: Option<Archive>,
    inbox: mpsc::Receiver<Report>,
    /// Cloned into connection tasks.
    inbox_tx: mpsc::Sender<Report>,
    orders: mpsc::Receiver<Order>,
}

/// Connections that are nobody's: counted, and logged once a second at most.
#[derive(Default)]
struct Refused {
    total: u64,
    lines: Sparse,
}

/// Keeps what somebody else can bring about as often as they like from filling the log.
#[derive(Default)]
struct Sparse {
    window: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl Sparse {
    /// Something has happened. How often since the last line, if there is one to be said now: at most so many a window.
    fn happened(&mut self, most: u32, window: Duration) -> Option<u64> {
        self.unlogged += 1;
        let now = Instant::now();
        if self.window.is_none_or(|at| now.duration_since(at) >= window) {
            (self.window, self.lines) = (Some(now), 0);
        }
        if self.lines >= most {
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.unlogged))
    }
}

impl SpeakerTask {
    pub(crate) fn new(
        orders: mpsc::Receiver<Order>,
        fib: FibQueue,
        recorder: Option<Recorder>,
        restarting: bool,
        monitor: broadcast::Sender<BgpEvent>,
    ) -> Self {
        // Small: what is in here is decoded and not yet part of any table.
        let (inbox_tx, inbox) = mpsc::channel(8);
        Self {
            origin: Instant::now(),
            speaker: None,
            identity: None,
            peers: None,
            routes: None,
            announced: Vec::new(),
            importer: None,
            statics: BTreeMap::new(),
            services: Arc::default(),
            next_hops: BTreeMap::new(),
            devices: None,
            restarting,
            links: HashMap::new(),
            by_token: HashMap::new(),
            tasks: JoinSet::new(),
            task_tokens: HashMap::new(),
            next_token: 0,
            next_accept: 1,
            turn_ends: Instant::now(),
            ready: Ready::default(),
            exits: Vec::new(),
            outputs: VecDeque::new(),
            dirty: Vec::new(),
            scratch: BytesMut::new(),
            listeners: Listeners::new(inbox_tx.clone()),
            fib,
            recorder,
            refused: Refused::default(),
            faults: HashMap::new(),
            warnings: HashMap::new(),
            trouble: HashMap::new(),
            tally: Tally::default(),
            client_arrivals: 0,
            defects: Defects::default(),
            draining: false,
            monitor,
            archive: None,
            inbox,
            inbox_tx,
            orders,
        }
    }

    /// Runs until told to shut down, or until every handle is gone.
    pub(crate) async fn run(mut self) {
        let mut busy_since = Instant::now();
        // When readers could last run, as far as is known.
        let mut paused_at = busy_since;
        loop {
            let deadline = self.deadline();
            self.tally.turns.add(busy_since);
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    None => return,
                    Some(Order::Shutdown(done)) => {
                        self.shutdown().await;
                        // Whoever asked may have stopped waiting.
                        let _ = done.send(());
                        return;
                    }
                    Some(order) => {
                        busy_since = Instant::now();
                        self.turn(|me| me.order(order));
                        // Questions must not hold up what peers say, however many there are.
                        self.turn(Self::reports);
                    }
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    busy_since = Instant::now();
                    self.turn(|me| {
                        me.reports();
                        me.ended(ended);
                    });
                }
                () = self.fib.hand_over(), if self.fib.has_work() => busy_since = Instant::now(),
                Some(report) = self.inbox.recv(), if self.ready.is_empty() => {
                    busy_since = Instant::now();
                    self.turn(|me| {
                        me.report(report);
                        me.reports();
                    });
                }
                () = imported(&mut self.importer), if self.importer.is_some() => {
                    busy_since = Instant::now();
                    self.turn(Self::announce_all);
                }
                () = tokio::task::yield_now(), if !self.ready.is_empty() => {
                    busy_since = Instant::now();
                    self.turn(Self::reports);
                }
                // More to write to somebody who takes it; whatever came in meanwhile was first.
                () = tokio::task::yield_now(), if !self.dirty.is_empty() => {}
                () = sleep_until(deadline.unwrap_or(self.origin)), if deadline.is_some() => {
                    busy_since = Instant::now();
                }
            }
            // Also when something else came first: a flood of input must not stop the timers.
            let due = self.deadline().is_some_and(|d| d <= Instant::now());
            if due && paused_at.elapsed() >= TURN {
                // A peer is not silent whose words nobody has read: on one thread readers run only when this task waits.
                tokio::task::yield_now().await;
                paused_at = Instant::now();
            }
            self.turn(|me| {
                if due {
                    me.on_time();
                }
                me.settle();
            });
        }
    }

    fn now(&self) -> Mono {
        // A machine would have to run for 584 million years to overflow this.
        Mono(u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn deadline(&self) -> Option<Instant> {
        let timer = self.speaker.as_ref().and_then(Speaker::deadline);
        let timer = timer.map(|d| self.origin + Duration::from_millis(d.0));
        [timer, self.listeners.deadline()].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        if self.listeners.deadline().is_some_and(|d| d <= Instant::now()) {
            let waited = self.listeners.retry();
            waited.into_iter().for_each(|report| self.report(report));
        }
        // What a peer sent counts from when it was there, not from when those before it were done with.
        let heard: Vec<ConnId> =
            self.links.iter().filter(|(_, l)| l.is_unread()).map(|(conn, _)| *conn).collect();
        for conn in heard {
            self.feed(Input::Heard { conn });
        }
        let now = self.now();
        let forwarding = self.forwarding();
        if let Some(speaker) = &mut self.speaker {
            if let Some(recorder) = &mut self.recorder {
                recorder.tick(now);
            }
            let outputs = &mut self.outputs;
            let done = guarded(|| {
                speaker.tell_forwarding(forwarding);
                speaker.on_time(now, outputs);
            });
            if let Err(panic) = done {
                return self.defect(panic);
            }
        }
        self.act();
    }

    /// Whether anybody is told of changes of forwarding: who programs routes, or who watches.
    fn forwarding(&self) -> bool {
        self.fib.is_heard() || self.monitor.receiver_count() > 0
    }

    /// Hands one input to the speaker and carries out what it wants.
    fn feed(&mut self, input: Input) {
        let now = self.now();
        let forwarding = self.forwarding();
        let Some(speaker) = &mut self.speaker else { return };
        if let Some(recorder) = &mut self.recorder {
            recorder.input(now, &input);
        }
        let outputs = &mut self.outputs;
        let done = guarded(|| {
            speaker.tell_forwarding(forwarding);
            speaker.handle(now, input, outputs);
        });
        match done {
            Ok(()) => self.act(),
            Err(panic) => self.defect(panic),
        }
    }

    /// End of a turn: writers get their next chunks, the recording is on disk before the task sleeps.
    fn settle(&mut self) {
        for conn in std::mem::take(&mut self.dirty) {
            self.next_chunk(conn);
        }
        if self.inbox.is_empty()
            && let Some(recorder) = &mut self.recorder
        {
            recorder.flush();
        }
    }

    fn act(&mut self) {
        while let Some(output) = self.outputs.pop_front() {
            match output {
                Output::Dial { conn, peer: _, to, from, ttl, password, interface, hops } => {
                    let token = self.token(conn);
                    let dial = conn::Dial { to, from, ttl, password, interface, hops, timeout: DIAL_TIMEOUT };
                    let task = self.spawn(token, conn::dial(token, dial));
                    self.links.insert(conn, Link { token, state: LinkState::Dialing(task) });
                }
                Output::Send { conn, message } => self.send(conn, &message),
                Output::Negotiated { conn, read, write } => {
                    self.tally.negotiated(conn, read);
                    if let Some(up) = self.up(conn) {
                        up.write = write;
                        up.mode.send_replace(Mode::Negotiated(read));
                    }
                }
                Output::Pending { conn } => {
                    if let Some(up) = self.up(conn) {
                        up.pending = true;
                        self.dirty.push(conn);
                    }
                }
                Output::Close { conn } => self.close(conn),
                Output::Fib(change) if self.statics.contains_key(&change.prefix) => {}
                Output::Fib(change) => {
                    if self.monitor.receiver_count() > 0 {
                        let same = change.next_hops.chunk_by(PartialEq::eq);
                        let hops: Vec<String> = same
                            .filter_map(|parts| match parts {
                                [] => None,
                                [hop] => Some(hop.to_string()),
                                [hop, ..] => Some(format!("{hop} x{}", parts.len())),
                            })
                            .collect();
                        let what = if hops.is_empty() {
                            "withdrawn".into()
                        } else {
                            format!("via {}", hops.join(" "))
                        };
                        self.tell("route", change.prefix.to_string(), what);
                    }
                    self.fib.change(change);
                }
                Output::Locate(next_hop) => self.fib.locate(next_hop),
                Output::FibInSync => {
                    info!("routes of all peers are complete");
                    self.fib.in_sync();
                }
                Output::Event(event) => self.log(&event),
            }
        }
    }

    /// One line per change of state. A peer that cannot be reached goes through the same states every few seconds:
    /// that is told once, and again when the reason changes.
    fn log(&mut self, event: &Event) {
        if self.monitor.receiver_count() > 0 {
            self.announce(event);
        }
        if let (Some(archive), Some(speaker)) = (&mut self.archive, &self.speaker) {
            // What is kept for others is no reason to end.
            if guarded(|| archive.event(speaker, event)).is_err() {
                archive.left_out();
                self.defects.total += 1;
            }
        }
        match event {
            Event::State { peer, name, old, new, cause } => {
                let news = if new == ESTABLISHED {
                    let config = self.speaker.as_ref().and_then(|s| s.peer_config(*peer));
                    self.client_arrivals += u64::from(config.is_some_and(is_client));
                    self.trouble.remove(peer);
                    true
                } else if [IDLE, ACTIVE].contains(&new.as_str()) {
                    self.trouble.insert(*peer, cause.clone()).as_ref() != Some(cause)
                } else {
                    old == ESTABLISHED
                };
                if news {
                    info!(peer = %name, %old, %new, %cause, "session");
                } else {
                    debug!(peer = %name, %old, %new, %cause, "session");
                }
            }
            Event::Fault { peer, what } => {
                let name = self.speaker.as_ref().and_then(|s| s.peer_config(*peer)).map(|c| c.name.as_str());
                if let Some(count) = self.faults.entry(*peer).or_default().happened(1, SECOND) {
                    warn!(peer = name.unwrap_or("removed"), %what, count, "faulty UPDATE");
                }
            }
            Event::Restart { peer: _, name, what, routes } => {
                info!(peer = %name, %what, routes, "graceful restart");
            }
            Event::Warning { peer, name, what } => {
                let count = self.warnings.entry(*peer).or_default().happened(WARNINGS, 10 * SECOND);
                match count {
                    Some(1) => warn!(peer = %name, %what, "session"),
                    Some(count) => warn!(peer = %name, %what, count, "session"),
                    None => {}
                }
            }
            Event::Config { name, what } => warn!(peer = %name, %what, "configuration problem"),
            Event::Refused { remote, why } => self.refused.count(*remote, why),
        }
    }
}

/// Waits until other routes of the kernel are to be announced.
async fn imported(importer: &mut Option<Importer>) {
    match importer {
        Some(i) => i.changed().await,
        None => std::future::pending().await,
    }
}

impl SpeakerTask {
    /// To those who watch.
    fn tell(&self, kind: &str, subject: String, what: String) {
        // Fails if the last one has just gone.
        let _ = self.monitor.send(BgpEvent { at_ms: view::wall_ms(), kind: kind.into(), subject, what });
    }

    fn announce(&self, event: &Event) {
        let name = |peer: &PeerId| {
            let config = self.speaker.as_ref().and_then(|s| s.peer_config(*peer));
            config.map_or_else(|| "removed".into(), |c| c.name.clone())
        };
        match event {
            Event::State { name, old, new, cause, .. } => {
                self.tell("session", name.clone(), format!("{old} -> {new}: {cause}"));
            }
            Event::Fault { peer, what } => self.tell("fault", name(peer), what.clone()),
            Event::Restart { name, what, routes, .. } => {
                self.tell("restart", name.clone(), format!("{what}, {routes} routes"));
            }
            Event::Warning { name, what, .. } => self.tell("warning", name.clone(), what.clone()),
            Event::Config { name, what } => self.tell("config", name.clone(), what.clone()),
            Event::Refused { remote, why } => self.tell("refused", remote.to_string(), why.clone()),
        }
    }
}

impl Refused {
    fn count(&mut self, remote: SocketAddr, why: &str) {
        self.total += 1;
        if let Some(count) = self.lines.happened(1, SECOND) {
            info!(%remote, count, total = self.total, "refused connection: {why}");
        }
    }
}
