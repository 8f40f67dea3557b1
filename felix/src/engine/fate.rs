//! What became of one prefix in the kernel: the entry that is there, or why it is not, what comes before it, and how
//! packets for it leave. For whoever asks (`brindlectl bgp explain`); nothing is changed.

use std::collections::BTreeSet;

use brindle_felix_core::{
    path::{Paths, Way},
    route::Route,
};
use ipnet::IpNet;

use super::Engine;
use crate::look::Fate;

impl Engine {
    /// The facts in the order in which a reader wants them; empty: felix has nothing to do with the prefix.
    pub(super) fn fate(&self, prefix: IpNet) -> Vec<Fate> {
        let fact = |good: bool, what: String| Fate { good, what };
        if !self.store_in_sync {
            // Neither pools nor the host's own routes are known: any other answer would send the reader astray.
            let what = "not decided yet: the datastore has not been read; the kernel keeps the routes it has";
            return vec![fact(false, what.into())];
        }
        let mut out = Vec::new();
        let wanted = self.wanted.routes.range((prefix, 0)..=(prefix, u32::MAX)).next();
        match wanted {
            Some((key, want)) => {
                let there = self.view.actual.get(key);
                // The words of a refusal name the write and the errno.
                let why = match (self.routes_failed.error(key), self.held.get(key)) {
                    _ if there == Some(want) => None,
                    (Some(error), _) => Some(format!("refused: {error}; it is tried again")),
                    (None, Some(held)) => Some(format!("not written: {want}: {}", held.why)),
                    (None, None) => Some(match there {
                        Some(have) => format!("being written: {want}, in place of {have}"),
                        None => format!("being written: {want}"),
                    }),
                };
                out.push(match why {
                    None => fact(true, format!("in the kernel: {want}")),
                    Some(why) => fact(false, why),
                });
            }
            None => {
                for r in self.view.entries(prefix).filter(|r| self.owner.owns(r)) {
                    let until =
                        if self.fib_in_sync { "it is removed" } else { "it stays until routes are in sync" };
                    out.push(fact(false, format!("in the kernel, from before: {r}; {until}")));
                }
            }
        }
        out.extend(self.shadows(prefix, wanted.map(|(_, r)| r)).map(|text| fact(false, text)));
        out.extend(self.ways(prefix));
        out
    }

    /// Other people's entries for the prefix that the kernel takes before ours, or in the absence of ours.
    fn shadows(&self, prefix: IpNet, wanted: Option<&Route>) -> impl Iterator<Item = String> {
        self.view.entries(prefix).filter(|r| !self.owner.owns(r)).filter_map(move |r| match wanted {
            Some(w) => (r.metric < w.metric).then(|| {
                format!(
                    "shadowed: somebody else's {r} comes first (metric {} before {}); remove it: ip route del {}",
                    r.metric, w.metric, r.dst
                )
            }),
            None => Some(format!("somebody else's entry: {r}")),
        })
    }

    /// How packets leave by each next hop, and why so; or why not at all.
    fn ways(&self, prefix: IpNet) -> Vec<Fate> {
        let paths = Paths::new(&self.inputs, &self.view.host);
        // One that is to have more of the flows stands there more than once.
        let hops = self.inputs.next_hops_of(&prefix).chunk_by(PartialEq::eq).filter_map(<[_]>::first);
        hops.map(|nh| match paths.path(&prefix, *nh) {
            Ok((Way::Ipip(to), why)) => {
                Fate { good: true, what: format!("by the tunnel {} to {to}: {why}", self.device) }
            }
            Ok((Way::Direct(hops), why)) => {
                let devices: BTreeSet<&str> = hops.iter().map(|h| &*h.dev).collect();
                let devices = devices.into_iter().collect::<Vec<_>>().join(" and ");
                Fate { good: true, what: format!("to {nh} by {devices}, no tunnel: {why}") }
            }
            Err(why) => Fate { good: false, what: format!("not to {nh}: {why}") },
        })
        .collect()
    }
}
