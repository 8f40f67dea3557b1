//! Actual against desired: the smallest list of route writes, in an order that never opens a gap. Pure and printable.

use std::{collections::BTreeMap, fmt};

use crate::{
    host::HostView,
    owner::Ownership,
    route::{PROTO_CLUSTER, PROTO_KERNEL, Route, RouteKey, Target},
};

type Table = BTreeMap<RouteKey, Route>;

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Add(Route),
    /// In place: the entry keeps its destination and metric, so no packet is lost.
    Replace {
        old: Route,
        new: Route,
    },
    Delete(Route),
}

/// A desired route that cannot be written now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub route: Route,
    pub why: String,
    /// Somebody else's route is in the way (otherwise it waits for a device).
    pub foreign: bool,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.route, self.why)
    }
}

/// What to write. Additions and replacements come first, deletions last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Waiting for a device, or blocked by somebody else's route.
    pub held: Vec<Held>,
    /// Ours, unwanted, and left in place for now.
    pub kept: usize,
    /// Entries of those who are gone that stay until ours for their destination is there.
    pub follow: Vec<RouteKey>,
    /// Desired routes that are not used: somebody else's with a better metric leads elsewhere.
    pub outranked: Vec<Held>,
}

/// What bears on deletions.
#[derive(Clone, Copy)]
pub struct PlanCx<'a> {
    pub owner: &'a Ownership,
    /// Further entries of a key, which IPv6 has: those in `actual` are ours where one of them is.
    pub beside: &'a BTreeMap<RouteKey, Vec<Route>>,
    /// Before bgpd has said that its best paths are complete, learned routes found in the kernel stay: they are what an
    /// earlier agent was told, and forward.
    pub fib_in_sync: bool,
    /// Pod devices seen so recently that their routes may be somebody's work in progress.
    pub grace: &'a dyn Fn(&str) -> bool,
    /// Routes of somebody who is gone: they go as soon as ours are in their place.
    pub left: &'a dyn Fn(&Route) -> bool,
}

impl PlanCx<'_> {
    /// Whether a route is ours to remove.
    fn ours(&self, route: &Route) -> bool {
        self.owner.owns(route) || (self.left)(route)
    }
}

impl Plan {
    /// Compares the main table with what should be there.
    pub fn new(
        actual: &BTreeMap<RouteKey, Route>,
        desired: &BTreeMap<RouteKey, Route>,
        host: &HostView,
        cx: &PlanCx<'_>,
    ) -> Self {
        let mut plan = Self::default();
        let mut cache = BTreeMap::new();
        for want in desired.values() {
            plan.want(actual, want, host, cx, &mut cache);
        }
        for (key, have) in actual {
            if !desired.contains_key(key) {
                plan.unwanted(have, (actual, desired), cx);
            }
        }
        plan
    }

    /// The same for some entries only.
    pub fn for_keys<'k>(
        keys: impl Iterator<Item = &'k RouteKey> + Clone,
        actual: &BTreeMap<RouteKey, Route>,
        desired: &BTreeMap<RouteKey, Route>,
        host: &HostView,
        cx: &PlanCx<'_>,
    ) -> Self {
        let mut plan = Self::default();
        let mut cache = BTreeMap::new();
        for key in keys.clone() {
            if let Some(want) = desired.get(key) {
                plan.want(actual, want, host, cx, &mut cache);
            }
        }
        for key in keys {
            if let (None, Some(have)) = (desired.get(key), actual.get(key)) {
                plan.unwanted(have, (actual, desired), cx);
            }
        }
        plan
    }

    fn want<'r>(
        &mut self,
        actual: &BTreeMap<RouteKey, Route>,
        want: &'r Route,
        host: &HostView,
        cx: &PlanCx<'_>,
        up: &mut BTreeMap<&'r str, bool>,
    ) {
        let down =
            want.devices().find(|d| !*up.entry(d).or_insert_with(|| host.link(d).is_some_and(|l| l.up)));
        if let Some(dev) = down {
            let why = format!("waiting for device {dev} to be up");
            self.held.push(Held { route: want.clone(), why, foreign: false });
            return;
        }
        let (dst, metric) = want.key();
        let mut better = actual.range((dst, 0)..(dst, metric)).map(|(_, r)| r);
        let elsewhere = |r: &&Route| r.target != want.target && r.protocol != PROTO_KERNEL && !cx.ours(r);
        if let Some(theirs) = better.find(elsewhere) {
            let why = format!(
                "somebody else's route with a better metric leads elsewhere ({theirs}); remove it or give it a metric \
                 above {metric}"
            );
            self.outranked.push(Held { route: want.clone(), why, foreign: true });
        }
        match (actual.get(&(dst, metric)), cx.beside.get(&(dst, metric))) {
            (Some(have), Some(beside)) => self.want_among(have, beside, want, cx),
            (Some(have), None) if have == want => {}
            (Some(have), None) if cx.ours(have) => {
                self.steps.push(Step::Replace { old: have.clone(), new: want.clone() });
            }
            (Some(have), None) => self.hold(want, have),
            (None, _) => self.steps.push(Step::Add(want.clone())),
        }
    }

    /// Of several entries of one key, which IPv6 has, the kernel would choose itself whom a replacement hits, perhaps
    /// somebody else's. Ours that are not as wanted go; what is wanted follows if nobody else has the place then.
    fn want_among(&mut self, have: &Route, beside: &[Route], want: &Route, cx: &PlanCx<'_>) {
        let all = || std::iter::once(have).chain(beside);
        let stale = all().filter(|r| cx.ours(r) && *r != want);
        self.steps.extend(stale.cloned().map(Step::Delete));
        if all().all(|r| r != want)
            && let Some(theirs) = all().find(|r| !cx.ours(r))
        {
            self.hold(want, theirs);
        }
    }

    fn hold(&mut self, want: &Route, theirs: &Route) {
        let why = format!("somebody else's route is in its place ({theirs}); remove it or change its metric");
        self.held.push(Held { route: want.clone(), why, foreign: true });
    }

    /// `tables`: what is there and what is desired.
    fn unwanted(&mut self, have: &Route, tables: (&Table, &Table), cx: &PlanCx<'_>) {
        let beside = cx.beside.get(&have.key()).into_iter().flatten();
        std::iter::once(have).chain(beside).for_each(|r| self.unwanted_one(r, tables, cx));
    }

    fn unwanted_one(&mut self, have: &Route, (actual, desired): (&Table, &Table), cx: &PlanCx<'_>) {
        if (cx.left)(have) {
            // Packets have another way before theirs goes.
            let ours = desired.range((have.dst, 0)..=(have.dst, u32::MAX));
            if ours.into_iter().all(|(key, want)| actual.get(key) == Some(want)) {
                self.steps.push(Step::Delete(have.clone()));
            } else {
                self.follow.push(have.key());
                self.kept += 1;
            }
            return;
        }
        if !cx.owner.owns(have) {
            return;
        }
        let learned = have.protocol == PROTO_CLUSTER && matches!(have.target, Target::Via(_));
        let young = have.devices().any(|d| (cx.grace)(d));
        if (learned && !cx.fib_in_sync) || young {
            self.kept += 1;
        } else {
            self.steps.push(Step::Delete(have.clone()));
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// Routes that only the agent needs: to other nodes, and the blackholes of this one's blocks. Those of local pods are not
/// among them, and the other owner that comes takes these over.
pub fn removal<'r>(actual: impl Iterator<Item = &'r Route>) -> Vec<Route> {
    let ours =
        |r: &&Route| r.protocol == PROTO_CLUSTER && matches!(r.target, Target::Via(_) | Target::Blackhole);
    actual.filter(ours).cloned().collect()
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Add(r) => write!(f, "+ {r}"),
            Self::Replace { old, new } => write!(f, "~ {new}   (was {old})"),
            Self::Delete(r) => write!(f, "- {r}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for s in &self.steps {
            writeln!(f, "{s}")?;
        }
        for h in &self.held {
            writeln!(f, "? {}   ({})", h.route, h.why)?;
        }
        if self.kept > 0 {
            writeln!(f, "= {} kept for now", self.kept)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::Link,
        route::{Hop, METRIC, PROTO_BIRD},
    };

    fn via(gateway: &str, protocol: u8, metric: u32) -> Route {
        let hop = Hop::new(gateway.parse().unwrap(), "eth0".into(), false);
        Route { dst: "10.0.0.64/26".parse().unwrap(), metric, protocol, target: Target::Via(vec![hop]) }
    }

    fn table(routes: &[&Route]) -> Table {
        routes.iter().map(|r| (r.key(), (*r).clone())).collect()
    }

    fn host() -> HostView {
        let eth0 = Link { up: true, mtu: 1500, inner: false, addresses: Vec::new() };
        HostView::default().with_links([("eth0".into(), eth0)].into())
    }

    fn plan(actual: &[&Route], desired: &[&Route], left: bool) -> Plan {
        let owner =
            Ownership { interface_prefixes: vec!["cali".into()], remove_external: true, device_protocol: 3 };
        let cx = PlanCx {
            owner: &owner,
            beside: &BTreeMap::new(),
            fib_in_sync: true,
            grace: &|_| false,
            left: &|r| left && r.protocol == PROTO_BIRD,
        };
        Plan::new(&table(actual), &table(desired), &host(), &cx)
    }

    #[test]
    fn a_route_that_was_left_goes_when_ours_is_there_and_not_before() {
        let (ours, theirs) = (via("10.9.0.3", PROTO_CLUSTER, METRIC), via("10.9.0.2", PROTO_BIRD, 0));
        let first = plan(&[&theirs], &[&ours], true);
        assert_eq!(first.steps, [Step::Add(ours.clone())]);
        assert_eq!(first.follow, [theirs.key()]);
        let then = plan(&[&theirs, &ours], &[&ours], true);
        assert_eq!((then.steps, then.follow), (vec![Step::Delete(theirs.clone())], vec![]));
        assert_eq!(plan(&[&theirs], &[], true).steps, [Step::Delete(theirs.clone())], "nobody has another");
        assert!(plan(&[&theirs], &[], false).is_empty(), "its owner lives");
    }

    #[test]
    fn a_route_that_was_left_in_the_place_of_ours_is_replaced() {
        let (ours, theirs) = (via("10.9.0.3", PROTO_CLUSTER, METRIC), via("10.9.0.2", PROTO_BIRD, METRIC));
        let want = Step::Replace { old: theirs.clone(), new: ours.clone() };
        assert_eq!(plan(&[&theirs], &[&ours], true).steps, [want]);
        assert_eq!(plan(&[&theirs], &[&ours], false).held.len(), 1);
    }

    #[test]
    fn a_better_route_of_somebody_else_is_named_if_it_leads_elsewhere() {
        let ours = via("10.9.0.3", PROTO_CLUSTER, METRIC);
        let said = |theirs: &Route| {
            let plan = plan(&[&ours, theirs], &[&ours], false);
            plan.outranked.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(&via("10.9.0.2", 4, 0)),
            [
                "10.0.0.64/26 via 10.9.0.3 dev eth0 proto 80 metric 1024: somebody else's route with a better metric leads \
              elsewhere (10.0.0.64/26 via 10.9.0.2 dev eth0 proto 4); remove it or give it a metric above 1024"
            ]
        );
        let none: [String; 0] = [];
        assert_eq!(said(&via("10.9.0.3", 4, 0)), none, "the same way");
        assert_eq!(said(&via("10.9.0.2", 4, 2000)), none, "a worse metric");
        assert_eq!(
            said(&via("10.9.0.2", PROTO_KERNEL, 0)),
            none,
            "a connected subnet is nearer than any way to it"
        );
    }

    #[test]
    fn a_removal_takes_what_leads_to_other_nodes_and_no_route_of_a_pod() {
        let route =
            |protocol, target| Route { dst: "10.0.0.0/26".parse().unwrap(), metric: 1024, protocol, target };
        let via = |dev: &str| Target::Via(vec![Hop::new("192.0.2.7".parse().unwrap(), dev.into(), true)]);
        let ours = [route(80, via("tunl0")), route(80, via("eth0")), route(80, Target::Blackhole)];
        let others = [
            route(80, Target::Device("cali1".into())),
            route(3, Target::Device("cali1".into())),
            route(12, via("tunl0")),
            route(4, Target::Blackhole),
            route(80, Target::Other("throw".into())),
        ];
        assert_eq!(removal(ours.iter().chain(&others)), ours);
    }
}
