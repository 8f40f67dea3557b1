//! The speaker task: the one owner of the [`Speaker`], of every connection's state and of the listening sockets.
//!
//! Each turn: wait for a report, an order, the end of a task, room in the FIB channel or the deadline; hand it to the
//! speaker; carry out its outputs in order; give idle writers their next chunk. Nothing in here waits for a peer.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use brindle_bgpd_core::{
    speaker::{
        Clear, ConnId, DownReason, Event, Input, LocalRoute, Output, PeerConfig, Speaker, SpeakerConfig,
    },
    time::Mono,
    wire::{Message, WireCx},
};
use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    task::{AbortHandle, Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tracing::{debug, error, info, warn};

use crate::{
    conn::{self, Chunk, Exit, LINGER, Mode, Report, Token},
    fib::FibQueue,
    handle::{Desired, ListenError, Order},
    listeners::Listeners,
    record::Recorder,
    view,
};

/// Octets of messages a writer gets at a time: what a busy connection costs in memory beside its socket buffer.
const CHUNK: usize = 16 * 1024;
/// Reports taken before outputs are looked at.
const REPORTS: usize = 32;
/// A connection attempt is given up after this.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// RFC 9687 section 3.2: eight minutes, or twice the hold time if that is longer.
const SEND_HOLD: Duration = Duration::from_secs(480);

/// A connection, as long as the speaker knows it.
struct Link {
    token: Token,
    state: LinkState,
}

enum LinkState {
    Dialing(AbortHandle),
    Up(Up),
}

struct Up {
    mode: watch::Sender<Mode>,
    chunks: mpsc::Sender<Chunk>,
    /// How messages are written: without capabilities until negotiated.
    write: WireCx,
    /// Messages for the next chunk, ahead of updates.
    control: BytesMut,
    /// The speaker has updates to pull.
    pending: bool,
    /// The writer has a chunk.
    busy: bool,
    /// Its buffer, between chunks of a long series.
    spare: Option<BytesMut>,
}

pub(crate) struct SpeakerTask {
    origin: Instant,
    /// `None` until told whom to speak for.
    speaker: Option<Speaker>,
    /// What was asked for last, to see what is new in the next order.
    desired: Desired,
    /// For the first speaker: an earlier run's routes are in the kernel.
    restarting: bool,
    /// By address: who may connect, and with which socket options.
    neighbors: HashMap<IpAddr, PeerConfig>,
    links: HashMap<ConnId, Link>,
    by_token: HashMap<Token, ConnId>,
    tasks: JoinSet<Exit>,
    /// So that the end of a task by a panic is that of its connection.
    task_tokens: HashMap<Id, Token>,
    next_token: u64,
    next_accept: u64,
    outputs: VecDeque<Output>,
    /// Connections whose writer may have something to do.
    dirty: Vec<ConnId>,
    listeners: Listeners,
    fib: FibQueue,
    recorder: Option<Recorder>,
    refused: Refused,
    inbox: mpsc::Receiver<Report>,
    /// Cloned into connection tasks.
    inbox_tx: mpsc::Sender<Report>,
    orders: mpsc::Receiver<Order>,
}

/// Connections from addresses that are no peers: counted, and logged once a second at most.
#[derive(Default)]
struct Refused {
    total: u64,
    unlogged: u64,
    logged_at: Option<Instant>,
}

impl SpeakerTask {
    pub(crate) fn new(
        orders: mpsc::Receiver<Order>,
        fib: FibQueue,
        recorder: Option<Recorder>,
        restarting: bool,
    ) -> Self {
        // Small: what is in here is decoded and not yet part of any table.
        let (inbox_tx, inbox) = mpsc::channel(8);
        Self {
            origin: Instant::now(),
            speaker: None,
            desired: Desired::default(),
            restarting,
            neighbors: HashMap::new(),
            links: HashMap::new(),
            by_token: HashMap::new(),
            tasks: JoinSet::new(),
            task_tokens: HashMap::new(),
            next_token: 0,
            next_accept: 1,
            outputs: VecDeque::new(),
            dirty: Vec::new(),
            listeners: Listeners::new(inbox_tx.clone()),
            fib,
            recorder,
            refused: Refused::default(),
            inbox,
            inbox_tx,
            orders,
        }
    }

    /// Runs until told to shut down, or until every handle is gone.
    pub(crate) async fn run(mut self) {
        loop {
            let deadline = self.deadline();
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
                    Some(order) => self.order(order),
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    // A task ends after its last report is in the inbox, so that comes first.
                    self.reports();
                    self.ended(ended);
                }
                () = self.fib.hand_over(), if self.fib.has_work() => {}
                Some(report) = self.inbox.recv() => {
                    self.report(report);
                    self.reports();
                }
                () = sleep_until(deadline.unwrap_or(self.origin)), if deadline.is_some() => {}
            }
            // Also when something else came first: a flood of input must not stop the timers.
            if self.deadline().is_some_and(|d| d <= Instant::now()) {
                self.on_time();
            }
            self.settle();
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
            self.listeners.retry();
        }
        let now = self.now();
        if let Some(speaker) = &mut self.speaker {
            if let Some(recorder) = &mut self.recorder {
                recorder.tick(now);
            }
            speaker.on_time(now, &mut self.outputs);
        }
        self.act();
    }

    /// Hands one input to the speaker and carries out what it wants.
    fn feed(&mut self, input: Input) {
        let now = self.now();
        let Some(speaker) = &mut self.speaker else { return };
        if let Some(recorder) = &mut self.recorder {
            recorder.input(now, &input);
        }
        speaker.handle(now, input, &mut self.outputs);
        self.act();
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

    // ---- reports of connection tasks -----------------------------------------------------------------------

    fn reports(&mut self) {
        for _ in 0..REPORTS {
            let Ok(report) = self.inbox.try_recv() else { return };
            self.report(report);
        }
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Accepted { stream, local, remote } => self.accepted(stream, local, remote),
            Report::Inputs { token, inputs } => {
                for input in inputs {
                    // An earlier message may have ended the connection.
                    if self.by_token.contains_key(&token) {
                        self.feed(input);
                    }
                }
            }
            Report::Room { token, buffer } => {
                let Some(conn) = self.by_token.get(&token).copied() else { return };
                if let Some(Link { state: LinkState::Up(up), .. }) = self.links.get_mut(&conn) {
                    up.busy = false;
                    up.spare = up.pending.then_some(buffer);
                    self.dirty.push(conn);
                }
            }
        }
    }

    fn accepted(&mut self, stream: TcpStream, local: SocketAddr, remote: SocketAddr) {
        let Some(neighbor) = self.neighbors.get(&remote.ip()) else {
            return self.refused.count(remote);
        };
        if let Err(e) = conn::prepare(&stream, neighbor.ttl) {
            return debug!(%remote, error = %e, "connection was gone before it was accepted");
        }
        let conn = ConnId(self.next_accept);
        self.next_accept += 2;
        let token = self.token(conn);
        let up = self.start(token, conn, stream, remote.ip());
        self.links.insert(conn, Link { token, state: LinkState::Up(up) });
        self.feed(Input::Accepted { conn, local, remote });
    }

    fn ended(&mut self, ended: Result<(Id, Exit), JoinError>) {
        let exit = match ended {
            Ok((id, exit)) => {
                self.task_tokens.remove(&id);
                exit
            }
            Err(e) => {
                let Some(token) = self.task_tokens.remove(&e.id()) else { return };
                if e.is_cancelled() {
                    return;
                }
                error!(error = %e, "a connection task failed; this is a defect, the session is closed");
                Exit::Lost { token, why: "internal error".into() }
            }
        };
        match exit {
            Exit::Closed => {}
            Exit::Dialed { token, stream } => self.dialed(token, stream),
            Exit::Lost { token, why } => {
                if let Some(conn) = self.forget(token) {
                    self.feed(Input::Disconnected { conn, reason: DownReason::Closed(why) });
                }
            }
            Exit::Stalled { token } => {
                if let Some(conn) = self.forget(token) {
                    self.feed(Input::SendStalled { conn });
                }
            }
        }
    }

    fn dialed(&mut self, token: Token, stream: io::Result<TcpStream>) {
        let Some(conn) = self.by_token.get(&token).copied() else { return };
        let ends = stream.and_then(|s| Ok((s.local_addr()?, s.peer_addr()?, s)));
        match ends {
            Ok((local, remote, stream)) => {
                let up = self.start(token, conn, stream, remote.ip());
                self.links.insert(conn, Link { token, state: LinkState::Up(up) });
                self.feed(Input::Connected { conn, local, remote });
            }
            Err(e) => {
                self.forget(token);
                let reason = DownReason::ConnectFailed(e.to_string());
                self.feed(Input::Disconnected { conn, reason });
            }
        }
    }

    // ---- links ----------------------------------------------------------------------------------------------

    fn token(&mut self, conn: ConnId) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.by_token.insert(token, conn);
        token
    }

    fn forget(&mut self, token: Token) -> Option<ConnId> {
        let conn = self.by_token.remove(&token)?;
        self.links.remove(&conn);
        Some(conn)
    }

    fn spawn(&mut self, token: Token, task: impl Future<Output = Exit> + Send + 'static) -> AbortHandle {
        let handle = self.tasks.spawn(task);
        self.task_tokens.insert(handle.id(), token);
        handle
    }

    /// Starts reader and writer.
    fn start(&mut self, token: Token, conn: ConnId, stream: TcpStream, remote: IpAddr) -> Up {
        let hold = self.neighbors.get(&remote).map_or(0, |n| n.hold_time);
        let send_hold = SEND_HOLD.max(Duration::from_secs(2 * u64::from(hold)));
        let (read_half, write_half) = stream.into_split();
        let (mode, mode_rx) = watch::channel(Mode::Open);
        // Two: the chunk being written, and the last one.
        let (chunks, chunks_rx) = mpsc::channel(2);
        self.spawn(token, conn::read(token, conn, read_half, mode_rx.clone(), self.inbox_tx.clone()));
        self.spawn(
            token,
            conn::write(token, write_half, chunks_rx, mode_rx, self.inbox_tx.clone(), send_hold),
        );
        Up {
            mode,
            chunks,
            write: WireCx::default(),
            control: BytesMut::new(),
            pending: false,
            busy: false,
            spare: None,
        }
    }

    fn up(&mut self, conn: ConnId) -> Option<&mut Up> {
        match self.links.get_mut(&conn) {
            Some(Link { state: LinkState::Up(up), .. }) => Some(up),
            _ => None,
        }
    }

    /// Gives an idle writer what is to be sent, messages before updates.
    fn next_chunk(&mut self, conn: ConnId) {
        let (Some(speaker), Some(Link { state: LinkState::Up(up), .. })) =
            (&mut self.speaker, self.links.get_mut(&conn))
        else {
            return;
        };
        if up.busy || (up.control.is_empty() && !up.pending) {
            return;
        }
        let mut bytes = match up.spare.take() {
            Some(mut spare) => {
                spare.extend_from_slice(&up.control);
                up.control.clear();
                spare
            }
            None => std::mem::take(&mut up.control),
        };
        while up.pending && bytes.len() < CHUNK {
            up.pending = speaker.next_update(conn, CHUNK, &mut bytes);
        }
        if !bytes.is_empty() {
            // Fails only if the writer ended; its exit is on the way.
            up.busy = up.chunks.try_send(Chunk { bytes, last: false }).is_ok();
        }
    }

    // ---- outputs --------------------------------------------------------------------------------------------

    fn act(&mut self) {
        while let Some(output) = self.outputs.pop_front() {
            match output {
                Output::Dial { conn, peer: _, to, from, ttl, password } => {
                    let token = self.token(conn);
                    let dial = conn::Dial { to, from, ttl, password, timeout: DIAL_TIMEOUT };
                    let task = self.spawn(token, conn::dial(token, dial));
                    self.links.insert(conn, Link { token, state: LinkState::Dialing(task) });
                }
                Output::Send { conn, message } => self.send(conn, &message),
                Output::Negotiated { conn, read, write } => {
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
                Output::Fib(change) => self.fib.change(change),
                Output::FibInSync => {
                    info!("routes of all peers are complete");
                    self.fib.in_sync();
                }
                Output::Event(event) => log(&event),
            }
        }
    }

    fn send(&mut self, conn: ConnId, message: &Message) {
        let Some(up) = self.up(conn) else { return };
        match message.emit(&up.write, &mut up.control) {
            Ok(()) => self.dirty.push(conn),
            // Control messages are small; a NOTIFICATION with the peer's own bytes in it is cut by the speaker.
            Err(e) => error!(error = %e, "a message could not be written; this is a defect, it is left out"),
        }
    }

    /// What is queued goes out, then the connection ends; from here on the speaker does not know it.
    fn close(&mut self, conn: ConnId) {
        let Some(link) = self.links.remove(&conn) else { return };
        self.by_token.remove(&link.token);
        match link.state {
            LinkState::Dialing(task) => task.abort(),
            LinkState::Up(up) => {
                up.mode.send_replace(Mode::Closing);
                // Fails only if the writer ended, and then there is nobody to tell.
                let _ = up.chunks.try_send(Chunk { bytes: up.control, last: true });
            }
        }
    }

    // ---- orders ---------------------------------------------------------------------------------------------

    fn order(&mut self, order: Order) {
        match order {
            Order::Apply(desired, answer) => {
                let errors = self.apply(*desired);
                // The asker may have gone; what it wanted is done all the same. So with the other answers.
                let _ = answer.send(errors);
            }
            Order::SetPeers(peers) => self.set_peers(peers),
            Order::SetLocalRoutes(routes) => self.set_local_routes(routes),
            Order::Clear(peer, how, answer) => {
                let _ = answer.send(self.clear(&peer, how));
            }
            Order::Status(answer) => {
                let listen = self.listeners.describe();
                let now = self.now();
                let status = self.speaker.as_ref().map(|s| view::status(s, now, listen));
                let _ = answer.send(status.unwrap_or_default());
            }
            Order::Rib(prefix, answer) => {
                let _ = answer.send(self.speaker.as_ref().map_or_else(Vec::new, |s| view::rib(s, prefix)));
            }
            Order::Shutdown(_) => {}
        }
    }

    fn apply(&mut self, desired: Desired) -> Vec<ListenError> {
        if desired.speaker != self.desired.speaker {
            self.restart(desired.speaker.clone());
            self.desired.speaker = desired.speaker;
            self.desired.peers.clear();
            self.desired.routes.clear();
        }
        // Routes first: a session that comes up has them to send.
        self.set_local_routes(desired.routes);
        self.set_peers(desired.peers);
        self.desired.listen = desired.listen;
        if self.speaker.is_some() {
            self.listeners.apply(&self.desired.listen)
        } else {
            self.listeners.apply(&[])
        }
    }

    fn set_peers(&mut self, peers: Vec<PeerConfig>) {
        if peers == self.desired.peers {
            return;
        }
        self.neighbors = peers.iter().map(|p| (p.address, p.clone())).collect();
        let passwords = peers.iter().filter_map(|p| Some((p.address, p.password.clone()?)));
        self.listeners.set_passwords(passwords.collect());
        self.desired.peers.clone_from(&peers);
        self.feed(Input::SetPeers(peers));
    }

    fn set_local_routes(&mut self, routes: Vec<LocalRoute>) {
        if routes == self.desired.routes {
            return;
        }
        self.desired.routes.clone_from(&routes);
        self.feed(Input::SetLocalRoutes(routes));
    }

    fn clear(&mut self, peer: &str, how: Clear) -> bool {
        let Some(speaker) = &self.speaker else { return false };
        let found = speaker.peers().find(|p| p.name == peer || p.address.to_string() == peer).map(|p| p.id);
        let Some(peer) = found else { return false };
        self.feed(Input::Clear { peer, how });
        true
    }

    /// Another identity is another speaker: the sessions of the old one end.
    fn restart(&mut self, config: Option<SpeakerConfig>) {
        if self.speaker.is_some() {
            info!(old = ?self.desired.speaker, new = ?config, "the speaker's identity changed; sessions restart");
            self.feed(Input::Shutdown);
            self.settle();
            let links: Vec<ConnId> = self.links.keys().copied().collect();
            links.into_iter().for_each(|conn| self.close(conn));
            self.fib.reset();
        }
        self.speaker = config.map(|mut config| {
            config.seed = random();
            config.restarting |= std::mem::take(&mut self.restarting);
            if let Some(recorder) = &mut self.recorder {
                recorder.speaker(&config);
            }
            Speaker::new(config)
        });
    }

    async fn shutdown(&mut self) {
        info!("BGP shuts down: every session ends with Cease");
        self.listeners.apply(&[]);
        self.feed(Input::Shutdown);
        self.settle();
        let links: Vec<ConnId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|conn| self.close(conn));
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(LINGER, all).await.is_err() {
            debug!("some peers did not take their NOTIFICATION in time");
        }
    }
}

impl Refused {
    fn count(&mut self, remote: SocketAddr) {
        self.total += 1;
        self.unlogged += 1;
        let now = Instant::now();
        if self.logged_at.is_none_or(|at| now.duration_since(at) >= Duration::from_secs(1)) {
            info!(%remote, count = self.unlogged, total = self.total, "refused connection: not a configured peer");
            self.logged_at = Some(now);
            self.unlogged = 0;
        }
    }
}

/// One line per change of state.
fn log(event: &Event) {
    match event {
        Event::State { peer: _, name, old, new, cause } => info!(peer = %name, %old, %new, %cause, "session"),
        Event::Fault { peer, what } => warn!(peer = peer.0, %what, "faulty UPDATE"),
        Event::Restart { peer: _, name, what, routes } => {
            info!(peer = %name, %what, routes, "graceful restart")
        }
        Event::Config { name, what } => warn!(peer = %name, %what, "configuration problem"),
        Event::Refused { remote, why } => info!(%remote, %why, "refused connection"),
    }
}

/// Seed for jitter and hash tables: the standard library's random hash keys, which need no further dependency.
fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u8)
}
