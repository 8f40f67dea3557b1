//! What the speaker task counts about itself: messages by neighbor and type, and how long its turns take. Plain
//! numbers, written by one task and read in its turns, so there is nothing to lock.

use std::{collections::HashMap, time::Duration};

use brindle_bgpd_core::{
    speaker::{ConnId, Input, PeerId, Speaker},
    wire::{Message, WireCx, frame::MsgType},
};
use brindle_config_core::status::bgp::Messages;
use tokio::time::Instant;

/// Received and sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) received: Messages,
    pub(crate) sent: Messages,
}

/// A connection's neighbor, also after the speaker has let go of it (its last word is still to be sent).
#[derive(Clone, Copy, Debug, Default)]
struct Conn {
    peer: Option<PeerId>,
    read: WireCx,
}

/// Turns of the speaker task: one is what happens between two waits, and for that long everybody else waits.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    pub(crate) count: u64,
    pub(crate) busy: Duration,
    /// Longest of this window and of the one before.
    longest: [Duration; 2],
    window: Option<Instant>,
}

/// How long the longest turn is remembered: one to two of these.
const WINDOW: Duration = Duration::from_secs(60);

impl Turns {
    pub(crate) fn add(&mut self, from: Instant) {
        let now = Instant::now();
        let took = now.duration_since(from);
        self.count += 1;
        self.busy += took;
        if self.window.is_none_or(|w| now.duration_since(w) >= WINDOW) {
            self.longest = [Duration::ZERO, self.longest[0]];
            self.window = Some(now);
        }
        self.longest[0] = self.longest[0].max(took);
    }

    /// The longest turn of the last one to two minutes.
    pub(crate) fn longest(&self) -> Duration {
        self.longest[0].max(self.longest[1])
    }
}

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    peers: HashMap<PeerId, Traffic>,
    conns: HashMap<ConnId, Conn>,
    pub(crate) turns: Turns,
}

impl Tally {
    /// The neighbor of a connection.
    pub(crate) fn peer(&mut self, conn: ConnId, speaker: Option<&Speaker>) -> Option<PeerId> {
        let known = self.conns.entry(conn).or_default();
        if known.peer.is_none() {
            known.peer = speaker.and_then(|s| s.owner(conn));
        }
        known.peer
    }

    /// How the messages of a connection are read.
    pub(crate) fn read_cx(&self, conn: ConnId) -> WireCx {
        self.conns.get(&conn).map(|c| c.read).unwrap_or_default()
    }

    pub(crate) fn negotiated(&mut self, conn: ConnId, read: WireCx) {
        self.conns.entry(conn).or_default().read = read;
    }

    pub(crate) fn received(&mut self, conn: ConnId, inputs: &[Input], speaker: Option<&Speaker>) {
        let Some(peer) = self.peer(conn, speaker) else { return };
        let counts = &mut self.peers.entry(peer).or_default().received;
        for input in inputs {
            if let Input::Message { message, .. } = input {
                count(counts, message);
            }
        }
    }

    pub(crate) fn sent(&mut self, conn: ConnId, message: &Message, speaker: Option<&Speaker>) {
        if let Some(peer) = self.peer(conn, speaker) {
            count(&mut self.peers.entry(peer).or_default().sent, message);
        }
    }

    /// Counts what was packed for a connection: UPDATEs, and where the answer to a route refresh begins and ends.
    pub(crate) fn packed(&mut self, conn: ConnId, mut bytes: &[u8], speaker: &Speaker) {
        let Some(peer) = self.peer(conn, Some(speaker)) else { return };
        let sent = &mut self.peers.entry(peer).or_default().sent;
        // The length stands behind the marker (RFC 4271 section 4.1).
        while let Some([high, low, kind]) = bytes.get(16..19) {
            let refresh = *kind == MsgType::RouteRefresh as u8;
            *(if refresh { &mut sent.route_refresh } else { &mut sent.update }) += 1;
            let len = usize::from(u16::from_be_bytes([*high, *low])).max(19);
            bytes = bytes.get(len..).unwrap_or_default();
        }
    }

    pub(crate) fn closed(&mut self, conn: ConnId) {
        self.conns.remove(&conn);
    }

    pub(crate) fn traffic(&self, peer: PeerId) -> Traffic {
        self.peers.get(&peer).copied().unwrap_or_default()
    }

    /// Only these neighbors are left.
    pub(crate) fn retain(&mut self, stays: impl Fn(PeerId) -> bool) {
        self.peers.retain(|id, _| stays(*id));
    }
}

fn count(counts: &mut Messages, message: &Message) {
    let n = match message {
        Message::Open(_) => &mut counts.open,
        Message::Update(_) => &mut counts.update,
        Message::Notification(_) => &mut counts.notification,
        Message::Keepalive => &mut counts.keepalive,
        Message::RouteRefresh(_) => &mut counts.route_refresh,
    };
    *n = n.saturating_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_turn_is_forgotten_after_two_windows() {
        let start = Instant::now();
        let mut turns = Turns::default();
        turns.add(start);
        turns.longest = [Duration::from_secs(3), Duration::ZERO];
        assert_eq!(turns.longest(), Duration::from_secs(3));
        turns.window = start.checked_sub(WINDOW);
        turns.add(Instant::now());
        assert_eq!(turns.longest(), Duration::from_secs(3), "the window before still counts");
        turns.window = start.checked_sub(WINDOW);
        turns.add(Instant::now());
        assert!(turns.longest() < Duration::from_secs(3));
        assert_eq!(turns.count, 3);
    }
}
