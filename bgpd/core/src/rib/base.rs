//! Both families behind one interface: what the speaker asks of its routes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use bytes::BytesMut;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::{
    LOCAL,
    afi::{Afi, ChangeCx, NewPath, next_hops},
    attrs::Interner,
    decision::Step,
    export::GroupKey,
    group::OutCx,
    import::{ImportCx, Invalid, Screen, Screened, judge_next_hop},
    pack::Packer,
    peers::{NextHops, Source, Sources},
    prefix::Prefix,
    rewrite::{Inward, Rewrite},
    table::{Age, Dest, Path},
};
use crate::{
    af::{Family, PerFamily},
    policy::Policy,
    speaker::{
        AddPathSend, ExportPolicy, FibChange, LocalRoute, Multipath, NextHopPolicy, PeerId, SpeakerConfig,
    },
    wire::{AttrSet, Nlri, Prefixes, Update, WireCx},
};

mod routing;

/// A neighbor with a session, as the RIB needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RibPeer {
    pub id: PeerId,
    pub ibgp: bool,
    pub client: bool,
    pub router_id: Ipv4Addr,
    pub address: IpAddr,
    /// Our end of the session.
    pub local_address: IpAddr,
    /// Our address as the next hop of a family's routes, where it is another than that.
    pub own_next_hop: PerFamily<Option<IpAddr>>,
    /// The AS we present.
    pub local_asn: u32,
    /// Our cluster as a reflector: our router identifier unless configured (RFC 4456 section 7).
    pub cluster_id: Ipv4Addr,
    pub allow_own_as: u8,
    pub next_hop: NextHopPolicy,
    pub policy: Arc<ExportPolicy>,
    pub import: Policy,
    pub families: PerFamily<bool>,
    /// Which paths it is told, in families with add-path (RFC 7911).
    pub add_path: PerFamily<Option<AddPathSend>>,
    /// How messages to it are written.
    pub write: WireCx,
    pub rewrite: Rewrite,
    pub inward: Inward,
}

impl RibPeer {
    /// Our address as the next hop of a family's routes.
    pub fn own(&self, family: Family) -> IpAddr {
        self.own_next_hop[family].unwrap_or(self.local_address)
    }

    /// Every address that is ours on this session, and whether the neighbor has it, too.
    fn own_addresses(&self) -> impl Iterator<Item = (IpAddr, bool)> {
        let beside = self.own_next_hop.0.into_iter().flatten().map(|a| (a, false));
        beside.chain([(self.local_address, self.local_address == self.address)])
    }

    fn source(&self) -> Source {
        Source { ibgp: self.ibgp, client: self.client, router_id: self.router_id, address: self.address }
    }

    pub(super) fn group(&self, family: Family) -> GroupKey {
        GroupKey {
            ibgp: self.ibgp,
            client: self.client,
            local_asn: self.local_asn,
            cluster_id: self.cluster_id,
            local_address: self.own(family),
            next_hop: self.next_hop,
            policy: Arc::clone(&self.policy),
            add_path: self.add_path[family],
            write: self.write,
            rewrite: self.rewrite,
        }
    }
}

/// How many routes a neighbor has sent, was told and is to be told, in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRoutes {
    pub received: usize,
    pub stale: usize,
    pub advertised: usize,
    pub waiting: usize,
}

/// A path with its standing, to be shown.
#[derive(Clone, Debug)]
pub struct PathView {
    pub prefix: IpNet,
    /// `None`: our own.
    pub from: Option<PeerId>,
    pub path_id: u32,
    pub attributes: AttrSet,
    pub next_hop: Option<IpAddr>,
    pub best: bool,
    /// Among those used for forwarding.
    pub multipath: bool,
    pub stale: bool,
    pub invalid: Option<Invalid>,
    /// The import rule that rejected it.
    pub rule: Option<String>,
    /// Where it lost; `None` for the best, and while selection is put off.
    pub lost: Option<Step>,
}

impl PathView {
    /// Why it is not the best.
    pub fn why(&self) -> String {
        match (self.best, self.invalid, self.lost) {
            (true, _, _) => "best".into(),
            (false, Some(_), _) if let Some(rule) = &self.rule => format!("rejected by filter {rule}"),
            (false, Some(invalid), _) => invalid.to_string(),
            (false, None, Some(Step::Validity)) => "the next hop is unreachable".into(),
            (false, None, Some(step)) => step.to_string(),
            (false, None, None) => "selection is put off".into(),
        }
    }
}

/// All routes of a speaker.
#[derive(Debug)]
pub struct Rib {
    cfg: SpeakerConfig,
    interner: Interner,
    sources: Sources,
    next_hops: NextHops,
    v4: Afi<Ipv4Net>,
    v6: Afi<Ipv6Net>,
    deferred: bool,
    /// Import policies of peers that have one; outlive the session as its stale routes do.
    imports: BTreeMap<PeerId, Policy>,
    ring: Vec<PeerId>,
    /// Somebody wants to know of changes of forwarding.
    forwarding: bool,
    fib: Vec<FibChange>,
    packer: Packer,
}

impl Rib {
    /// An empty RIB. With `cfg.restarting`, selection is put off until [`release`](Self::release).
    pub fn new(cfg: SpeakerConfig) -> Self {
        Self {
            interner: Interner::new(&cfg),
            sources: Sources::new(cfg.router_id),
            next_hops: NextHops::default(),
            v4: Afi::new(cfg.seed),
            v6: Afi::new(cfg.seed.wrapping_add(1)),
            deferred: cfg.restarting,
            imports: BTreeMap::new(),
            ring: Vec::new(),
            forwarding: true,
            fib: Vec::new(),
            packer: Packer::new(cfg.seed),
            cfg,
        }
    }

    pub(super) const fn v4(&self) -> &Afi<Ipv4Net> {
        &self.v4
    }

    pub(super) const fn v6(&self) -> &Afi<Ipv6Net> {
        &self.v6
    }

    pub(super) const fn sources(&self) -> &Sources {
        &self.sources
    }

    pub(super) const fn next_hops(&self) -> &NextHops {
        &self.next_hops
    }

    /// The parts a change works on.
    fn split(&mut self) -> (&mut Afi<Ipv4Net>, &mut Afi<Ipv6Net>, ChangeCx<'_>) {
        let cx = ChangeCx {
            out: OutCx {
                sources: &self.sources,
                interner: &mut self.interner,
                next_hops: &mut self.next_hops,
                ring: &mut self.ring,
            },
            multipath: self.cfg.multipath,
            deferred: self.deferred,
            fib: self.forwarding.then_some(&mut self.fib),
        };
        (&mut self.v4, &mut self.v6, cx)
    }

    /// Neighbors for which there is now something to pull.
    pub fn take_ring(&mut self) -> std::vec::Drain<'_, PeerId> {
        self.ring.drain(..)
    }

    /// Next hops whose device rules ask for and nobody has named.
    pub fn take_ask(&mut self) -> std::vec::Drain<'_, IpAddr> {
        self.next_hops.take_ask()
    }

    /// Whether routes wait for such an answer.
    pub fn waits_for_devices(&self) -> bool {
        self.next_hops.waits()
    }

    /// Whether changes of forwarding are told from now on.
    pub const fn tell_forwarding(&mut self, wanted: bool) {
        self.forwarding = wanted;
    }

    /// Changes of forwarding.
    pub fn take_fib(&mut self) -> std::vec::Drain<'_, FibChange> {
        self.fib.drain(..)
    }

    /// A session is established: its neighbor is told everything, and routes of it are welcome.
    pub fn peer_up(&mut self, peer: &RibPeer) {
        for (address, beside) in peer.own_addresses() {
            self.next_hops.add_own(address, beside);
        }
        self.set_source(peer);
        self.set_import(peer.id, &peer.import);
        let eor = !self.deferred;
        self.hold_default(peer);
        let (v4, v6, mut cx) = self.split();
        for family in Family::ALL.into_iter().filter(|f| peer.families[*f]) {
            match family {
                Family::Ipv4Unicast => {
                    v4.groups.join(&v4.table, peer.id, peer.group(family), eor, &mut cx.out);
                }
                Family::Ipv6Unicast => {
                    v6.groups.join(&v6.table, peer.id, peer.group(family), eor, &mut cx.out);
                }
            }
        }
    }

    /// Settings of an established session changed that need no new session.
    pub fn peer_changed(&mut self, old: &RibPeer, peer: &RibPeer) {
        for (address, beside) in peer.own_addresses() {
            self.next_hops.add_own(address, beside);
        }
        for (address, beside) in old.own_addresses() {
            self.next_hops.remove_own(address, beside);
        }
        self.set_source(peer);
        self.set_import(peer.id, &peer.import);
        let changed = |f| old.group(f) != peer.group(f);
        self.hold_default(peer);
        let (v4, v6, mut cx) = self.split();
        let (f4, f6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
        if v4.groups.contains(peer.id) && changed(f4) {
            v4.groups.join(&v4.table, peer.id, peer.group(f4), false, &mut cx.out);
        }
        if v6.groups.contains(peer.id) && changed(f6) {
            v6.groups.join(&v6.table, peer.id, peer.group(f6), false, &mut cx.out);
        }
    }

    /// A default route that is originated is said like any other, whether or not there are paths to it.
    fn hold_default(&mut self, peer: &RibPeer) {
        if peer.rewrite.default_route.is_some() {
            self.v4.hold_default();
            self.v6.hold_default();
        }
    }

    /// Judges what a peer has sent again if its import policy is another than before; it need not be up.
    pub fn set_import(&mut self, peer: PeerId, import: &Policy) {
        let same = match self.imports.get(&peer) {
            Some(old) => old == import,
            None => import.is_empty(),
        };
        if same {
            return;
        }
        if import.is_empty() {
            self.imports.remove(&peer);
        } else {
            self.imports.insert(peer, import.clone());
        }
        let mut screen = Screen::new(import, self.sources.get(peer).ibgp);
        let (v4, v6, mut cx) = self.split();
        v4.screen(peer, &mut screen, None, &mut cx);
        screen.memo = None;
        v6.screen(peer, &mut screen, None, &mut cx);
    }

    fn set_source(&mut self, peer: &RibPeer) {
        let source = peer.source();
        if *self.sources.get(peer.id) == source {
            return;
        }
        self.sources.set(peer.id, source);
        let (v4, v6, mut cx) = self.split();
        v4.source_changed(peer.id, &mut cx);
        v6.source_changed(peer.id, &mut cx);
    }

    /// The session ended. Routes of families in `keep` become stale, the others go; returns how many were kept. Those
    /// already stale have had their time (RFC 4724 section 4.2), except in families in `again` (RFC 9494).
    pub fn peer_down(&mut self, peer: &RibPeer, keep: PerFamily<bool>, again: PerFamily<bool>) -> usize {
        for (address, beside) in peer.own_addresses() {
            self.next_hops.remove_own(address, beside);
        }
        let (v4, v6, mut cx) = self.split();
        v4.groups.remove(peer.id);
        v6.groups.remove(peer.id);
        let mut kept = 0;
        if keep[Family::Ipv4Unicast] {
            if !again[Family::Ipv4Unicast] {
                v4.drop_paths(peer.id, true, &mut cx);
            }
            kept += v4.mark_stale(peer.id);
        } else {
            v4.drop_paths(peer.id, false, &mut cx);
        }
        if keep[Family::Ipv6Unicast] {
            if !again[Family::Ipv6Unicast] {
                v6.drop_paths(peer.id, true, &mut cx);
            }
            kept += v6.mark_stale(peer.id);
        } else {
            v6.drop_paths(peer.id, false, &mut cx);
        }
        kept
    }

    /// The neighbor is gone for good.
    pub fn forget(&mut self, peer: PeerId) {
        self.imports.remove(&peer);
        let (v4, v6, mut cx) = self.split();
        v4.drop_paths(peer, false, &mut cx);
        v6.drop_paths(peer, false, &mut cx);
        self.sources.forget(peer);
    }

    /// Drops what is kept as stale in a family; returns how many paths.
    pub fn drop_stale(&mut self, peer: PeerId, family: Family) -> usize {
        let (v4, v6, mut cx) = self.split();
        match family {
            Family::Ipv4Unicast => v4.drop_paths(peer, true, &mut cx),
            Family::Ipv6Unicast => v6.drop_paths(peer, true, &mut cx),
        }
    }

    /// The restart time of a neighbor is over and its stale routes are kept on as the last resort (RFC 9494): they get
    /// LLGR_STALE, those with NO_LLGR go. Returns how many are left.
    pub fn long_lived(&mut self, peer: PeerId, family: Family) -> usize {
        let (v4, v6, mut cx) = self.split();
        match family {
            Family::Ipv4Unicast => v4.long_lived(peer, &mut cx),
            Family::Ipv6Unicast => v6.long_lived(peer, &mut cx),
        }
    }

    /// An UPDATE of an established neighbor. Gives a prefix to which it has sent more than [`MAX_PATHS`](super::MAX_PATHS);
    /// what comes after that is left out.
    pub fn update(&mut self, peer: &RibPeer, update: Update) -> Option<IpNet> {
        for prefixes in &update.withdrawn {
            self.withdraw(peer, prefixes);
        }
        let mut set = update.attributes?;
        let judge = ImportCx {
            speaker: &self.cfg,
            ibgp: peer.ibgp,
            local_asn: peer.local_asn,
            allow_own_as: peer.allow_own_as,
            inward: peer.inward,
        };
        let bad = judge.judge(&mut set);
        for reach in &update.reach {
            let bad = bad.or_else(|| judge_next_hop(&reach.next_hop, &self.next_hops));
            let Some(attrs) = self.interner.intern(&set, Some(reach.next_hop)) else {
                // Longer than an attribute can be once AS numbers have four octets: nobody could be told.
                self.withdraw(peer, &reach.prefixes);
                continue;
            };
            let new = NewPath { peer: peer.id, attrs, ebgp: !peer.ibgp, bad, raw: None };
            let families = peer.families;
            let mut screen = Screen::new(&peer.import, peer.ibgp);
            let (v4, v6, mut cx) = self.split();
            let crowded = match &reach.prefixes {
                Prefixes::V4(list) if families[Family::Ipv4Unicast] => {
                    announce(v4, list, &new, &mut screen, &mut cx)
                }
                Prefixes::V6(list) if families[Family::Ipv6Unicast] => {
                    announce(v6, list, &new, &mut screen, &mut cx)
                }
                // A family that was not negotiated is ignored (RFC 4760 section 6).
                Prefixes::V4(_) | Prefixes::V6(_) => None,
            };
            if crowded.is_some() {
                return crowded;
            }
        }
        None
    }

    fn withdraw(&mut self, peer: &RibPeer, prefixes: &Prefixes) {
        let (v4, v6, mut cx) = self.split();
        match prefixes {
            Prefixes::V4(list) => v4.withdraw(list, peer.id, &mut cx),
            Prefixes::V6(list) => v6.withdraw(list, peer.id, &mut cx),
        }
    }

    /// The complete set of own routes.
    pub fn set_local(&mut self, routes: Vec<LocalRoute>) {
        let mut wanted: Vec<IpNet> = routes.iter().map(|r| r.prefix).collect();
        wanted.sort_unstable();
        for LocalRoute { prefix, next_hop, mut attributes } in routes {
            attributes.local_pref.get_or_insert(self.cfg.local_pref);
            let Some(attrs) = self.interner.intern(&attributes, next_hop) else { continue };
            let new = NewPath { peer: LOCAL, attrs, ebgp: false, bad: None, raw: None };
            let (v4, v6, mut cx) = self.split();
            // One path each.
            match prefix {
                IpNet::V4(p) => v4.announce(p.trunc(), [0], &new, &mut cx),
                IpNet::V6(p) => v6.announce(p.trunc(), [0], &new, &mut cx),
            };
        }
        let (v4, v6, mut cx) = self.split();
        let wanted = |net: IpNet| wanted.binary_search(&net).is_ok();
        v4.retain(LOCAL, |p| wanted(p.net()), &mut cx);
        v6.retain(LOCAL, |p| wanted(p.net()), &mut cx);
    }

    /// Other bounds for equal-cost paths.
    pub fn set_multipath(&mut self, bounds: Multipath) {
        if std::mem::replace(&mut self.cfg.multipath, bounds) == bounds {
            return;
        }
        let (v4, v6, mut cx) = self.split();
        v4.decide_all(&mut cx);
        v6.decide_all(&mut cx);
    }

    /// The driver's word on a next hop.
    pub fn set_next_hop(&mut self, address: IpAddr, cost: Option<u32>) {
        if self.next_hops.set(address, cost) {
            let (v4, v6, mut cx) = self.split();
            v4.decide_all(&mut cx);
            v6.decide_all(&mut cx);
        }
    }

    /// The devices towards next hops, all that are known: what came, and what is told, where rules look at them is judged
    /// again.
    pub fn set_devices(&mut self, devices: BTreeMap<IpAddr, String>) {
        let Some(changed) = self.next_hops.set_devices(devices) else { return };
        let imports = self.imports.iter().filter(|(_, policy)| policy.reads_interface());
        for (peer, policy) in imports.map(|(peer, policy)| (*peer, policy.clone())).collect::<Vec<_>>() {
            let mut screen = Screen::new(&policy, self.sources.get(peer).ibgp);
            let (v4, v6, mut cx) = self.split();
            v4.screen(peer, &mut screen, Some(&changed), &mut cx);
            screen.memo = None;
            v6.screen(peer, &mut screen, Some(&changed), &mut cx);
        }
        let (v4, v6, mut cx) = self.split();
        v4.devices_changed(&mut cx);
        v6.devices_changed(&mut cx);
    }

    /// The neighbor is to be told everything again. `marked`: where that begins and ends is to be said (RFC 7313). While
    /// selection is put off it has been told nothing, and will be told all.
    pub fn refresh(&mut self, peer: PeerId, family: Family, marked: bool) {
        if self.deferred {
            return;
        }
        match family {
            Family::Ipv4Unicast => self.v4.groups.refresh(&self.v4.table, peer, marked, &mut self.ring),
            Family::Ipv6Unicast => self.v6.groups.refresh(&self.v6.table, peer, marked, &mut self.ring),
        }
    }

    /// The neighbor begins to send everything again (RFC 7313).
    pub fn begin_refresh(&mut self, peer: PeerId, family: Family) {
        match family {
            Family::Ipv4Unicast => self.v4.begin_refresh(peer),
            Family::Ipv6Unicast => self.v6.begin_refresh(peer),
        }
    }

    /// It has sent everything: what it did not repeat goes; returns how many paths.
    pub fn end_refresh(&mut self, peer: PeerId, family: Family) -> usize {
        let (v4, v6, mut cx) = self.split();
        match family {
            Family::Ipv4Unicast => v4.end_refresh(peer, &mut cx),
            Family::Ipv6Unicast => v6.end_refresh(peer, &mut cx),
        }
    }

    /// Whether selection is put off.
    pub const fn deferred(&self) -> bool {
        self.deferred
    }

    /// Selection begins: everything that was received is decided about, everybody is told, End-of-RIB follows.
    pub fn release(&mut self) {
        if !std::mem::replace(&mut self.deferred, false) {
            return;
        }
        let (v4, v6, mut cx) = self.split();
        v4.decide_all(&mut cx);
        v6.decide_all(&mut cx);
        v4.groups.end_of_rib(cx.out.ring);
        v6.groups.end_of_rib(cx.out.ring);
    }

    /// Appends UPDATEs for a neighbor: about `limit` octets, at least one message if any waits. False: nothing waits
    /// and nothing was appended.
    pub fn pull(&mut self, peer: PeerId, limit: usize, buf: &mut BytesMut) -> bool {
        // Nobody is told anything before selection (RFC 4724 section 4.1); its end rings for everybody.
        if self.deferred {
            self.v4.groups.drained(peer);
            self.v6.groups.drained(peer);
            return false;
        }
        let start = buf.len();
        let mut packer = std::mem::replace(&mut self.packer, Packer::new(0));
        let (v4, v6, mut cx) = self.split();
        v4.groups.pull(&v4.table, peer, limit, &mut packer, &mut cx.out, buf);
        let used = buf.len() - start;
        if used < limit.max(1) {
            v6.groups.pull(&v6.table, peer, limit - used, &mut packer, &mut cx.out, buf);
        }
        let any = buf.len() > start;
        if !any {
            v4.groups.drained(peer);
            v6.groups.drained(peer);
        }
        self.packer = packer;
        any
    }

    /// Of the paths of a neighbor, those kept from before its restart.
    pub fn stale(&self, peer: PeerId, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.v4.stale(peer),
            Family::Ipv6Unicast => self.v6.stale(peer),
        }
    }

    /// Paths a neighbor has sent in a family.
    pub fn received(&self, peer: PeerId, family: Family) -> usize {
        match family {
            Family::Ipv4Unicast => self.v4.received(peer),
            Family::Ipv6Unicast => self.v6.received(peer),
        }
    }

    /// Octets encoded and not yet read by everybody, and changes that wait for one neighbor.
    #[cfg(test)]
    pub(super) fn unread(&self, peer: PeerId) -> (usize, usize) {
        let groups = (&self.v4.groups, &self.v6.groups);
        (groups.0.octets() + groups.1.octets(), groups.0.waiting(peer) + groups.1.waiting(peer))
    }

    /// Destinations held, those without paths included.
    #[cfg(test)]
    pub(super) fn destinations(&self) -> usize {
        self.v4.table.len() + self.v6.table.len()
    }

    /// Path identifiers of ours in use, for both families.
    #[cfg(test)]
    pub(super) fn path_ids(&self) -> usize {
        self.v4.groups.path_ids() + self.v6.groups.path_ids()
    }

    /// Counts of a neighbor in a family.
    pub fn counts(&self, peer: PeerId, family: Family) -> PeerRoutes {
        fn of<P: Prefix>(afi: &Afi<P>, peer: PeerId) -> PeerRoutes {
            PeerRoutes {
                received: afi.received(peer),
                stale: afi.stale(peer),
                advertised: afi.groups.told(peer),
                waiting: afi.groups.waiting(peer),
            }
        }
        match family {
            Family::Ipv4Unicast => of(&self.v4, peer),
            Family::Ipv6Unicast => of(&self.v6, peer),
        }
    }

    /// Paths to a prefix, or to all, sorted by prefix and peer.
    pub fn paths(&self, prefix: Option<IpNet>) -> impl Iterator<Item = PathView> + '_ {
        fn views<'a, P: Prefix>(
            dests: Vec<&'a Dest<P>>,
            imports: &'a BTreeMap<PeerId, Policy>,
        ) -> impl Iterator<Item = PathView> + 'a {
            dests.into_iter().flat_map(move |d| d.paths.iter().map(move |p| view(d, p, imports)))
        }
        let (v4, v6) = match prefix {
            None => (self.v4.select(None), self.v6.select(None)),
            Some(IpNet::V4(p)) => (self.v4.select(Some(p)), Vec::new()),
            Some(IpNet::V6(p)) => (Vec::new(), self.v6.select(Some(p))),
        };
        views(v4, &self.imports).chain(views(v6, &self.imports))
    }

    /// Where packets to exactly this prefix go, as the last change for forwarding said it; empty: nowhere.
    pub fn next_hops_to(&self, prefix: IpNet) -> SmallVec<[IpAddr; 1]> {
        match prefix {
            IpNet::V4(p) => self.v4.select(Some(p)).first().map(|d| next_hops(d)),
            IpNet::V6(p) => self.v6.select(Some(p)).first().map(|d| next_hops(d)),
        }
        .unwrap_or_default()
    }

    /// What a neighbor has been told: prefix, path identifier (0 without add-path), attributes, next hop.
    pub fn advertised(&self, peer: PeerId) -> impl Iterator<Item = (IpNet, u32, AttrSet, Option<IpAddr>)> {
        self.v4
            .advertised(peer)
            .into_iter()
            .chain(self.v6.advertised(peer))
            .map(|(net, id, a)| (net, id, a.set(), a.next_hop().map(|h| h.ip())))
    }
}

fn announce<P: Prefix>(
    afi: &mut Afi<P>,
    list: &[Nlri<P>],
    new: &NewPath,
    screen: &mut Screen<'_>,
    cx: &mut ChangeCx<'_>,
) -> Option<IpNet> {
    // Of several paths to a prefix, wherever they stand, one decision is made. Without identifiers there is one each.
    let mut sorted: Vec<Nlri<P>>;
    let list: &[Nlri<P>] = if list.iter().any(|n| n.path_id != 0) {
        sorted = list.to_vec();
        sorted.sort_unstable_by_key(|n| (n.prefix, n.path_id));
        &sorted
    } else {
        list
    };
    let unscreened = screen.policy.is_empty() || new.bad.is_some();
    let mut screened;
    for same in list.chunk_by(|a, b| a.prefix == b.prefix) {
        let Some(prefix) = same.first().map(|n| n.prefix) else { continue };
        let new = if unscreened {
            new
        } else {
            let Screened { attrs, raw, bad } =
                screen.judge(prefix.net(), &new.attrs, cx.out.interner, cx.out.next_hops);
            screened = NewPath { peer: new.peer, attrs, ebgp: new.ebgp, bad, raw };
            &screened
        };
        if !afi.announce(prefix, same.iter().map(|n| n.path_id), new, cx) {
            return Some(prefix.net());
        }
    }
    None
}

fn view<P: Prefix>(dest: &Dest<P>, path: &Path, imports: &BTreeMap<PeerId, Policy>) -> PathView {
    PathView {
        prefix: dest.prefix.net(),
        from: (path.peer != LOCAL).then_some(path.peer),
        path_id: path.path_id,
        attributes: path.attrs.set(),
        next_hop: path.attrs.next_hop().map(|h| h.ip()),
        best: dest.best().is_some_and(|b| std::ptr::eq(b, path)),
        multipath: path.flags.multipath,
        stale: path.flags.age == Age::Stale,
        invalid: path.bad,
        rule: match path.bad {
            Some(Invalid::Filtered(n)) => {
                imports.get(&path.peer).and_then(|p| p.rule(P::FAMILY, n)).map(|r| r.to_string())
            }
            _ => None,
        },
        lost: path.lost,
    }
}
