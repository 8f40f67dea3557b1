//! What the engine says about itself: which endpoints are in the kernel and why others are not, what failed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::status::EncapStatus;
use brindle_felix_core::{
    desire::{Endpoint, paths},
    plan::Held,
    route::Target,
};

use super::{Engine, FRESH_PATHS};

/// Failures shown in the report.
const SHOWN: usize = 20;
/// How often the paths of very many prefixes are described anew.
const PATHS_PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Publishes the state if it differs from what was published.
    pub(super) fn publish(&mut self, now: Instant) {
        self.refresh_paths(now);
        let (mut ready, mut waiting) = (BTreeSet::new(), BTreeMap::new());
        for (key, e) in &self.wanted.endpoints {
            match self.waits_for(e) {
                None => drop(ready.insert(key.clone())),
                Some(why) => drop(waiting.insert(key.clone(), why)),
            }
        }
        // A pod without its route is this node's failure. Another route somebody else has in the place of ours is the administrator's
        // business, and one that waits for its device follows by itself; endpoints say that of theirs.
        let pods = |h: &&Held| matches!(h.route.target, Target::Device(_));
        let (mut failed, mut held) = (Vec::new(), Vec::new());
        failed.extend(self.routes_failed.errors().chain(self.parts_failed.errors()).map(str::to_owned));
        failed.extend(self.held.values().filter(|h| pods(h) && h.foreign).map(ToString::to_string));
        held.extend(self.held.values().filter(|h| !pods(h)).take(SHOWN).map(ToString::to_string));
        let waits = self.held.values().any(|h| !pods(&h) && !h.foreign);
        self.status.in_sync = self.fib_in_sync && failed.is_empty() && !waits;
        self.status.desired = self.wanted.routes.len();
        self.status.failed = failed.iter().take(SHOWN).cloned().collect();
        let problems: Vec<String> =
            self.wanted.problems().map(str::to_owned).chain(failed).take(10 * SHOWN).collect();
        let (device, why) = self.tunnel.describe();
        let refused = self.tunnel.refused(!self.asked.is_empty());
        let warnings: Vec<String> = self
            .wanted
            .warnings
            .iter()
            .cloned()
            .chain(self.tunnel.unfiltered())
            .chain(held)
            .chain(self.outranked.values().take(SHOWN).map(ToString::to_string))
            .take(SHOWN)
            .collect();
        self.report.send_if_modified(|r| {
            let mut changed = false;
            let mut set = |differs: bool| changed |= differs;
            set(update(&mut r.routes, self.status.clone()));
            let mtu = self.wanted.tunnel.as_ref().map_or(0, |t| t.mtu);
            let old_paths = std::mem::take(&mut r.encap.paths);
            set(old_paths != self.paths);
            let paths = if old_paths == self.paths { old_paths } else { self.paths.clone() };
            let head = (r.encap.device.as_str(), r.encap.why.as_str(), r.encap.mtu, r.encap.refused);
            set(head != (device, why.as_str(), mtu, refused));
            r.encap = EncapStatus { device: device.into(), why, mtu, paths, refused };
            if *r.ready != ready {
                r.ready = Arc::new(ready);
                set(true);
            }
            set(update(&mut r.waiting, waiting));
            set(update(&mut r.own_blocks, self.wanted.own_blocks.clone()));
            set(update(&mut r.pod_mtu, self.wanted.pod_mtu));
            set(update(&mut r.problems, problems));
            let far = self.reaches.iter().map(|(n, reach)| (*n, reach.cost()));
            if !r.next_hops.iter().map(|(n, c)| (*n, *c)).eq(far.clone()) {
                r.next_hops = Arc::new(far.collect());
                set(true);
            }
            let by = self.reaches.iter().filter_map(|(n, reach)| Some((*n, reach.device()?)));
            if !r.devices.iter().map(|(n, d)| (*n, d.as_str())).eq(by.clone()) {
                r.devices = Arc::new(by.map(|(n, d)| (n, d.to_owned())).collect());
                set(true);
            }
            set(update(&mut r.warnings, warnings));
            set(update(&mut r.pod_prefixes, self.owner.interface_prefixes.clone()));
            changed
        });
    }

    /// Describing 100,000 paths takes longer than changing one of them.
    fn refresh_paths(&mut self, now: Instant) {
        if !self.paths_stale {
            return;
        }
        let free = self.paths_from.is_none_or(|t| now.saturating_duration_since(t) >= PATHS_PAUSE);
        if free || self.inputs.fib_len() <= FRESH_PATHS {
            self.paths = paths(&self.inputs, &self.view.host);
            self.paths_stale = false;
            self.paths_from = Some(now);
            self.paths_at = None;
        } else {
            self.paths_at.get_or_insert(now + PATHS_PAUSE);
        }
    }

    /// What an endpoint lacks; none: it is complete.
    fn waits_for(&self, e: &Endpoint) -> Option<String> {
        let Some(link) = self.view.link_named(&e.dev) else {
            // A pod of another plugin's: its device has a name of that plugin's, and its routes are not ours to write.
            let ours = self.owner.is_pod(&e.dev);
            return ours.then(|| format!("device {} is not there", e.dev));
        };
        if !link.up {
            return Some(format!("device {} is down", e.dev));
        }
        if !self.set.contains_key(&link.index) {
            return Some(format!("settings of {} are not written", e.dev));
        }
        for a in &e.addresses {
            let entries = self.wanted.routes.range((a.trunc(), 0)..=(a.trunc(), u32::MAX));
            let mut own = entries.filter(|(_, r)| r.devices().any(|d| *d == *e.dev)).peekable();
            if own.peek().is_none() {
                return Some(format!("{a} is routed to another endpoint"));
            }
            if let Some((_, missing)) = own.find(|(k, r)| self.view.actual.get(k) != Some(r)) {
                return Some(format!("route {missing} is not written"));
            }
        }
        None
    }
}

/// Stores a value; whether it differs from the old one.
fn update<T: PartialEq>(slot: &mut T, value: T) -> bool {
    let differs = *slot != value;
    *slot = value;
    differs
}
