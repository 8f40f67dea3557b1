//! Dynamic neighbors: made when somebody connects from a range, forgotten when nothing of them is left.
//!
//! They cannot cost more than the range allows: a limit on their number, and their identifiers are used again. One that has
//! to stay down is kept, and counts, until an operator clears it or the settings of its range change.

use std::{collections::VecDeque, net::IpAddr};

use super::{DynamicPeers, Event, Output, PeerId, Speaker, config::template_fault};
use crate::{fsm::PeerInput, time::Mono};

impl Speaker {
    /// Makes the ranges what `list` says ([`Input::SetDynamic`](super::Input::SetDynamic)).
    pub(super) fn set_dynamic(&mut self, now: Mono, list: Vec<DynamicPeers>, out: &mut VecDeque<Output>) {
        self.cfg.dynamic = usable(list, out);
        let present: Vec<(PeerId, IpAddr)> =
            self.peers.values().filter(|p| p.dynamic).map(|p| (p.id, p.fsm.config().address)).collect();
        for (id, address) in present {
            match DynamicPeers::of(&self.cfg.dynamic, address).map(|d| d.peer(address)) {
                Some(cfg) => self.change(now, id, cfg, out),
                None => self.remove(now, id, out),
            }
            self.retire(now, id, out);
        }
    }

    /// The range of a connection that is not for a neighbor we have; `Err` says why there is none. Nobody is a guest
    /// beside the neighbor that has its address, nor at another address of ours than its range names.
    pub(super) fn range_of(
        &self,
        local: IpAddr,
        remote: IpAddr,
        interface: Option<&str>,
    ) -> Result<&DynamicPeers, &'static str> {
        if self.at_address(remote, interface).next().is_some() {
            return Err("expected at another address of ours (sourceAddress)");
        }
        let range = DynamicPeers::of(&self.cfg.dynamic, remote).ok_or("not a configured neighbor")?;
        match range.template.local_address {
            Some(ours) if ours.to_canonical() != local.to_canonical() => {
                Err("its range is for another address of ours (sourceAddress)")
            }
            Some(_) | None => Ok(range),
        }
    }

    /// A neighbor for a connection from an address nobody configured; `Err` says why there is none.
    pub(super) fn admit(
        &mut self,
        now: Mono,
        (local, address): (IpAddr, IpAddr),
        interface: Option<&str>,
        out: &mut VecDeque<Output>,
    ) -> Result<PeerId, &'static str> {
        let range = self.range_of(local, address, interface)?;
        if range.template.session.shutdown.is_some() {
            return Err("the range is shut down");
        }
        // Of a range within a range the guests are its own.
        let of_range = |guest: IpAddr| {
            DynamicPeers::of(&self.cfg.dynamic, guest).is_some_and(|d| d.range == range.range)
        };
        let members = self.peers.values().filter(|p| p.dynamic && of_range(p.fsm.config().address));
        if members.count() >= usize::try_from(range.max).unwrap_or(usize::MAX) {
            return Err("the range has as many neighbors as it may have");
        }
        let cfg = range.peer(address);
        let id = self.add_dynamic(now, cfg, out);
        Ok(id)
    }

    fn add_dynamic(&mut self, now: Mono, cfg: super::PeerConfig, out: &mut VecDeque<Output>) -> PeerId {
        let id = self.insert(now, cfg);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.dynamic = true;
            peer.pinned = true;
        }
        self.drive(now, id, PeerInput::Start, out);
        id
    }

    /// Forgets a dynamic neighbor of which nothing is left: no connection, no back-off, no routes kept, nothing that keeps
    /// it down.
    pub(super) fn retire(&mut self, now: Mono, id: PeerId, out: &mut VecDeque<Output>) {
        let over = self.peers.get(&id).is_some_and(|p| {
            p.dynamic && !p.pinned && !p.held && p.deadline().is_none() && p.fsm.ids().next().is_none()
        });
        if over {
            self.remove(now, id, out);
        }
    }
}

/// The ranges whose template can be used; the others are named.
pub(super) fn usable(list: Vec<DynamicPeers>, out: &mut VecDeque<Output>) -> Vec<DynamicPeers> {
    list.into_iter()
        .filter(|d| match template_fault(&d.template) {
            Some(what) => {
                let what = format!("dynamic range {}: {what}", d.range);
                out.push_back(Output::Event(Event::Config { name: d.name.clone(), what }));
                false
            }
            None => true,
        })
        .collect()
}
