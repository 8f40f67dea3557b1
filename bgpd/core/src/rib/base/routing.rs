//! Another cluster or LOCAL_PREF while sessions go on: what was received is kept, judged and ranked again.

use super::{Rib, Screen};
use crate::{
    policy::Policy,
    speaker::{PeerId, Routing},
};

impl Rib {
    /// Other settings of the speaker. What neighbors are told of reflected routes changes with
    /// [`peer_changed`](Self::peer_changed), own routes with [`set_local`](Self::set_local).
    pub fn set_routing(&mut self, routing: Routing) {
        let old = self.cfg.cluster_id.unwrap_or(self.cfg.router_id);
        self.cfg.set_routing(routing);
        let cluster = routing.cluster_id.unwrap_or(self.cfg.router_id);
        if cluster != old {
            for (peer, policy) in self.internal() {
                let mut screen = Screen::new(&policy, true);
                let (v4, v6, mut cx) = self.split();
                v4.cluster_changed(peer, cluster, &mut screen, &mut cx);
                screen.memo = None;
                v6.cluster_changed(peer, cluster, &mut screen, &mut cx);
            }
        }
        if self.interner.set_normal(routing.local_pref) {
            let (v4, v6, mut cx) = self.split();
            v4.intern_again(&mut cx);
            v6.intern_again(&mut cx);
            // Rules may ask for the priority.
            for (peer, policy) in self.imports.clone() {
                let mut screen = Screen::new(&policy, self.sources.get(peer).ibgp);
                let (v4, v6, mut cx) = self.split();
                v4.screen(peer, &mut screen, None, &mut cx);
                screen.memo = None;
                v6.screen(peer, &mut screen, None, &mut cx);
            }
        }
    }

    /// Internal neighbors that have sent anything, with their import policies.
    fn internal(&self) -> Vec<(PeerId, Policy)> {
        let known = self.v4.neighbors().max(self.v6.neighbors());
        let all = (0..known).map(PeerId).filter(|peer| self.sources.get(*peer).ibgp);
        all.map(|peer| (peer, self.imports.get(&peer).cloned().unwrap_or_default())).collect()
    }
}
