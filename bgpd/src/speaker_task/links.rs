//! The connections of the speaker task: what their tasks report, what goes to their writers, how they end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use brindle_admin::defect::guarded;
use brindle_bgpd_core::{
    speaker::{ConnId, DownReason, Input, PeerConfig},
    wire::{Message, WireCx},
};
use brindle_kernel::tcp;
use bytes::BytesMut;
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, Id, JoinError},
    time::Instant,
};
use tracing::{debug, error};

use super::{Link, LinkState, REPORTS, SpeakerTask, Up};
use crate::conn::{self, Chunk, Exit, Half, Mode, Report, Token, write_now};

/// Octets of messages a connection gets at a time: what one that is slow costs in memory beside its socket buffer, and
/// how long the others wait for their turn.
const CHUNK: usize = 64 * 1024;
/// RFC 9687 section 3.2: eight minutes, or twice the hold time if that is longer.
const SEND_HOLD: Duration = Duration::from_secs(480);
/// Octets of messages other than updates that may wait for a connection. Nothing that a peer does fills this; who has not
/// read so much for so long has stalled.
const CONTROL: usize = 64 * 1024;

impl SpeakerTask {
    /// What has come in, until it is all taken or the turn is over.
    pub(super) fn reports(&mut self) {
        loop {
            while self.ready.len() < REPORTS
                && let Ok(report) = self.inbox.try_recv()
            {
                self.report(report);
            }
            if !self.serve() || Instant::now() >= self.turn_ends {
                return;
            }
        }
    }

    /// The messages of the report that is next, as many as fit into the turn. `false`: there is none.
    fn serve(&mut self) -> bool {
        let Some((token, mut inputs)) = self.ready.take() else { return false };
        // An earlier message may have ended the connection.
        while self.by_token.contains_key(&token)
            && let Some(input) = inputs.next()
        {
            self.feed(input);
            if inputs.len() > 0 && Instant::now() >= self.turn_ends {
                self.ready.give_back(token, inputs);
                return true;
            }
        }
        self.ready.done(token);
        if let Some(conn) = self.by_token.get(&token)
            && let Some(Link { state: LinkState::Up(up), .. }) = self.links.get(conn)
        {
            up.ahead.add_permits(1);
        }
        for exit in std::mem::take(&mut self.exits) {
            self.exit(exit);
        }
        true
    }

    /// Whether reports of a connection are still to be taken.
    fn is_unread(&self, token: Token) -> bool {
        let link = self.by_token.get(&token).and_then(|conn| self.links.get(conn));
        link.is_some_and(Link::is_unread)
    }

    pub(super) fn report(&mut self, report: Report) {
        match report {
            Report::Accepted { stream, via, local, remote, age } => {
                self.accepted(stream, (via, age), local, remote)
            }
            Report::Inputs { token, inputs } => {
                if let Some(conn) = self.by_token.get(&token) {
                    self.tally.received(*conn, &inputs, self.speaker.as_ref());
                    if let (Some(archive), Some(speaker)) = (&mut self.archive, &self.speaker) {
                        let cx = self.tally.read_cx(*conn);
                        let local = match self.links.get(conn).map(|l| &l.state) {
                            Some(LinkState::Up(up)) => up.socket.local_addr().ok().map(|a| a.ip()),
                            Some(LinkState::Dialing(_)) | None => None,
                        };
                        if guarded(|| archive.messages(speaker, *conn, local, &cx, &inputs)).is_err() {
                            archive.left_out();
                            self.defects.total += 1;
                        }
                    }
                }
                self.ready.push(token, inputs);
            }
            Report::Room { token } => {
                let Some(conn) = self.by_token.get(&token).copied() else { return };
                if let Some(Link { state: LinkState::Up(up), .. }) = self.links.get_mut(&conn) {
                    up.busy = false;
                    self.dirty.push(conn);
                }
            }
        }
    }

    fn accepted(
        &mut self,
        stream: TcpStream,
        (via, age): (SocketAddr, u64),
        local: SocketAddr,
        remote: SocketAddr,
    ) {
        let interface = tcp::device_of(remote);
        let settings = self.speaker.as_ref();
        let settings =
            settings.and_then(|s| s.settings_for(local.ip(), remote.ip(), interface.as_deref())).cloned();
        let Some(settings) = settings else {
            return self.refused.count(remote, "not a configured peer");
        };
        if let Some(key) = settings.password.as_deref() {
            // The kernel has one key for an address; that of another peer there, or none, lets nobody in who needs this
            // one. Neither does one that was set after the handshake: what has come since then may be anybody's.
            if self.listeners.key(via, remote.ip(), age) != Some(key) {
                return self.refused.count(remote, "it was not signed with the TCP-MD5 key of its peer");
            }
            // It has inherited the key; if it has not, the kernel drops from here on what is not signed.
            if let Err(e) = tcp::set_md5(&stream, remote.ip(), Some(key.as_bytes())) {
                debug!(%remote, error = %e, "no TCP-MD5 key on the connection");
                return self.refused.count(remote, "the kernel does not take the TCP-MD5 key of its peer");
            }
        }
        if let Err(e) = conn::prepare(&stream, &settings) {
            return debug!(%remote, error = %e, "connection was gone before it was accepted");
        }
        let conn = ConnId(self.next_accept);
        self.next_accept += 2;
        let token = self.token(conn);
        let up = self.start(token, conn, stream, send_hold(&settings));
        self.links.insert(conn, Link { token, state: LinkState::Up(up) });
        self.feed(Input::Accepted { conn, local, remote, interface });
    }

    pub(super) fn ended(&mut self, ended: Result<(Id, Exit), JoinError>) {
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
        self.exit(exit);
    }

    /// The end of a task. It comes after its last report is in the inbox, and is looked at when that was taken.
    fn exit(&mut self, exit: Exit) {
        match exit {
            Exit::Lost { token, .. } | Exit::Stalled { token } if self.is_unread(token) => {
                self.exits.push(exit);
            }
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
                let speaker = self.speaker.as_ref();
                let settings = speaker.and_then(|s| s.peer_config(s.owner(conn)?));
                let send_hold = settings.map_or(SEND_HOLD, send_hold);
                let up = self.start(token, conn, stream, send_hold);
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

    pub(super) fn token(&mut self, conn: ConnId) -> Token {
        self.next_token += 1;
        let token = Token(self.next_token);
        self.by_token.insert(token, conn);
        token
    }

    fn forget(&mut self, token: Token) -> Option<ConnId> {
        let conn = self.by_token.remove(&token)?;
        self.tally.closed(conn);
        self.links.remove(&conn);
        Some(conn)
    }

    pub(super) fn spawn(
        &mut self,
        token: Token,
        task: impl Future<Output = Exit> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.tasks.spawn(task);
        self.task_tokens.insert(handle.id(), token);
        handle
    }

    /// Starts reader and writer.
    fn start(&mut self, token: Token, conn: ConnId, stream: TcpStream, send_hold: Duration) -> Up {
        let socket = Arc::new(stream);
        let (read_half, write_half) = (Half(Arc::clone(&socket)), Half(Arc::clone(&socket)));
        let (mode, mode_rx) = watch::channel(Mode::Open);
        // Two: the chunk being written, and the last one.
        let (chunks, chunks_rx) = mpsc::channel(2);
        let (send_hold, hold_rx) = watch::channel(send_hold);
        let ahead = Arc::new(Semaphore::new(conn::AHEAD));
        let inbox = self.inbox_tx.clone();
        self.spawn(token, conn::read(token, conn, read_half, mode_rx.clone(), inbox, Arc::clone(&ahead)));
        let inbox = self.inbox_tx.clone();
        self.spawn(token, conn::write(token, write_half, chunks_rx, mode_rx, inbox, hold_rx));
        Up {
            socket,
            mode,
            chunks,
            send_hold,
            write: WireCx::default(),
            control: BytesMut::new(),
            pending: false,
            busy: false,
            ahead,
        }
    }

    /// Connections go on under other settings, where these are about nothing a peer was told.
    pub(super) fn settings_changed(&self) {
        let Some(speaker) = &self.speaker else { return };
        for (conn, link) in &self.links {
            let LinkState::Up(up) = &link.state else { continue };
            let settings = speaker.owner(*conn).and_then(|id| speaker.peer_config(id));
            if let Some(time) = settings.map(send_hold) {
                up.send_hold.send_if_modified(|old| std::mem::replace(old, time) != time);
            }
        }
    }

    pub(super) fn up(&mut self, conn: ConnId) -> Option<&mut Up> {
        match self.links.get_mut(&conn) {
            Some(Link { state: LinkState::Up(up), .. }) => Some(up),
            _ => None,
        }
    }

    /// Sends what is to be sent, messages before updates, a chunk at a time so that every connection has its turn. What
    /// the socket does not take at once is the writer's.
    pub(super) fn next_chunk(&mut self, conn: ConnId) {
        let (Some(speaker), Some(Link { state: LinkState::Up(up), .. })) =
            (&mut self.speaker, self.links.get_mut(&conn))
        else {
            return;
        };
        if up.busy || (up.control.is_empty() && !up.pending) {
            return;
        }
        let bytes = &mut self.scratch;
        bytes.clear();
        bytes.extend_from_slice(&up.control);
        up.control = BytesMut::new();
        let control = bytes.len();
        let packed = guarded(|| {
            while up.pending && bytes.len() < CHUNK {
                up.pending = speaker.next_update(conn, CHUNK - bytes.len(), bytes);
            }
        });
        if let Err(panic) = packed {
            return self.defect(panic);
        }
        self.tally.packed(conn, bytes.get(control..).unwrap_or_default(), speaker);
        let sent = write_now(&up.socket, bytes);
        if let Some(rest) = bytes.get(sent..).filter(|r| !r.is_empty()) {
            // Fails only if the writer ended; its exit is on the way.
            up.busy = up.chunks.try_send(Chunk { bytes: rest.into(), last: false }).is_ok();
        } else if up.pending {
            self.dirty.push(conn);
        }
        if bytes.capacity() > 4 * CHUNK {
            *bytes = BytesMut::new();
        }
    }

    pub(super) fn send(&mut self, conn: ConnId, message: &Message) {
        self.tally.sent(conn, message, self.speaker.as_ref());
        let Some(up) = self.up(conn) else { return };
        let before = up.control.len();
        match message.emit(&up.write, &mut up.control) {
            Ok(()) => {
                let full = before <= CONTROL && up.control.len() > CONTROL;
                self.dirty.push(conn);
                if full {
                    self.feed(Input::SendStalled { conn });
                }
            }
            // Control messages are small; a NOTIFICATION with the peer's own bytes in it is cut by the speaker.
            Err(e) => error!(error = %e, "a message could not be written; this is a defect, it is left out"),
        }
    }

    /// What is queued goes out, then the connection ends; from here on the speaker does not know it.
    pub(super) fn close(&mut self, conn: ConnId) {
        self.tally.closed(conn);
        let Some(link) = self.links.remove(&conn) else { return };
        self.by_token.remove(&link.token);
        match link.state {
            LinkState::Dialing(task) => task.abort(),
            LinkState::Up(up) => {
                up.mode.send_replace(Mode::Closing);
                // Nobody takes the reports of its reader any more: it must not wait for that.
                up.ahead.close();
                // Fails only if the writer ended, and then there is nobody to tell.
                let _ = up.chunks.try_send(Chunk { bytes: up.control, last: true });
            }
        }
    }
}

/// How long a peer may take nothing from us.
fn send_hold(settings: &PeerConfig) -> Duration {
    match settings.session.send_hold {
        Some(seconds) => Duration::from_secs(u64::from(seconds)),
        None => SEND_HOLD.max(Duration::from_secs(2 * u64::from(settings.hold_time))),
    }
}
