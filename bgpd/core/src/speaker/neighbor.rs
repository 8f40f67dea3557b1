//! A neighbor as the speaker keeps it: state machine, session, what is kept from before a restart, counters.

use std::{collections::VecDeque, sync::Arc};

use super::{ConnId, Event, Output, PeerConfig, PeerId};
use crate::{
    af::PerFamily,
    fsm::{Peer, Session, StateKind},
    rib::RibPeer,
    time::Mono,
};

/// An established session.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) conn: ConnId,
    pub(super) since: Mono,
    pub(super) session: Arc<Session>,
    pub(super) rib: RibPeer,
    /// End-of-RIB markers received.
    pub(super) eor: PerFamily<bool>,
    /// Families the neighbor is sending again, and until when it may take (RFC 7313).
    pub(super) refreshing: PerFamily<Option<Refreshing>>,
}

/// A neighbor is sending everything again (RFC 7313).
#[derive(Clone, Copy, Debug)]
pub(super) struct Refreshing {
    /// So long it may take.
    pub(super) until: Mono,
    /// Something came since it began, or began anew.
    pub(super) came: bool,
    /// How often it may still begin anew before it has come to an end.
    left: u8,
}

impl Refreshing {
    /// Nobody needs more; each costs a walk over all that the neighbor has sent.
    const ANEW: u8 = 8;

    /// A beginning. False: nothing is to be done about it, for nothing has come since the last one, or it was the last
    /// of too many.
    pub(super) fn begin(now: &mut Option<Self>, until: Mono) -> bool {
        let left = match now {
            Some(Self { came: false, .. } | Self { left: 0, .. }) => return false,
            Some(old) => old.left - 1,
            None => Self::ANEW,
        };
        *now = Some(Self { until, came: false, left });
        true
    }
}

/// A neighbor.
#[derive(Debug)]
pub(super) struct Neighbor {
    pub(super) id: PeerId,
    pub(super) fsm: Peer,
    pub(super) up: Option<Up>,
    /// Until when routes of the last session are kept (RFC 4724).
    pub(super) stale_until: Option<Mono>,
    /// Families whose stale routes may be kept on after that, seconds (RFC 9494).
    pub(super) long_lived: PerFamily<Option<u32>>,
    /// Until when they are.
    pub(super) long_until: PerFamily<Option<Mono>>,
    /// When a neighbor that had too many prefixes may start again.
    pub(super) start_at: Option<Mono>,
    /// Such a neighbor does not start by itself at all.
    pub(super) held: bool,
    /// A warning about the number of prefixes was given.
    pub(super) warned: PerFamily<bool>,
    /// Made on accept; goes when nothing is left of it.
    pub(super) dynamic: bool,
    /// Something is being done with it: it must not go now.
    pub(super) pinned: bool,
    /// What stands in the speaker's timer index.
    pub(super) armed: Option<Mono>,
    /// Last change of state.
    pub(super) since: Mono,
    pub(super) last_error: Option<String>,
    /// When the last session ended, and by what.
    pub(super) ended: Option<(Mono, String)>,
    /// Sessions that were established.
    pub(super) sessions: u32,
    pub(super) updates: u64,
    /// Of these, those with faults.
    pub(super) faulty: u64,
}

impl Neighbor {
    pub(super) fn new(id: PeerId, cfg: Arc<PeerConfig>, seed: u64, now: Mono) -> Self {
        Self {
            id,
            fsm: Peer::new(cfg, seed),
            up: None,
            stale_until: None,
            long_lived: PerFamily::default(),
            long_until: PerFamily::default(),
            start_at: None,
            held: false,
            warned: PerFamily::default(),
            dynamic: false,
            pinned: false,
            armed: None,
            since: now,
            last_error: None,
            ended: None,
            sessions: 0,
            updates: 0,
            faulty: 0,
        }
    }

    pub(super) fn deadline(&self) -> Option<Mono> {
        let kept = self.long_until.0.into_iter().flatten();
        let refreshing = self.up.iter().flat_map(|up| up.refreshing.0.into_iter().flatten());
        let refreshing = refreshing.map(|r| r.until);
        let fsm = self.fsm.deadline().into_iter();
        fsm.chain(self.stale_until).chain(kept).chain(refreshing).chain(self.start_at).min()
    }

    /// What kept it down no longer does.
    pub(super) const fn may_start(&mut self) {
        self.start_at = None;
        self.held = false;
    }

    /// Whether routes of an earlier session are still here.
    pub(super) fn keeps(&self) -> bool {
        self.stale_until.is_some() || self.long_until.0.iter().any(Option::is_some)
    }

    /// They are not any more.
    pub(super) fn kept_nothing(&mut self) {
        self.stale_until = None;
        self.long_until = PerFamily::default();
    }

    /// Says so if the state is another than before.
    pub(super) fn report(&mut self, now: Mono, old: StateKind, out: &mut VecDeque<Output>) {
        let new = self.fsm.state();
        if new == old {
            return;
        }
        self.since = now;
        // The end of a session is told by what ended it, even if another connection is under way already.
        let cause = match &self.last_error {
            Some(error) if old == StateKind::Established => error.clone(),
            Some(_) | None => self.fsm.cause().to_string(),
        };
        // An attempt that failed on its way (refused, wrong AS, …) is what an operator wants to read.
        let failed = old == StateKind::Established || self.fsm.cause().is_failure();
        if matches!(new, StateKind::Idle | StateKind::Active) && old != StateKind::Idle && failed {
            self.last_error = Some(cause.clone());
        }
        out.push_back(Output::Event(Event::State {
            peer: self.id,
            name: self.fsm.config().name.clone(),
            old: old.to_string(),
            new: new.to_string(),
            cause,
        }));
    }
}
