//! Actual against desired: the smallest list of route writes, in an order that never opens a gap. Pure and printable.

use std::{collections::BTreeMap, fmt};

use crate::{
    host::HostView,
    owner::Ownership,
    route::{PROTO_CLUSTER, Route, RouteKey, Target},
};

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
        for (key, want) in desired {
            plan.want(actual.get(key), want, host, cx, &mut cache);
        }
        for (key, have) in actual {
            if !desired.contains_key(key) {
                plan.unwanted(key, have, cx);
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
                plan.want(actual.get(key), want, host, cx, &mut cache);
            }
        }
        for key in keys {
            if let (None, Some(have)) = (desired.get(key), actual.get(key)) {
                plan.unwanted(key, have, cx);
            }
        }
        plan
    }

    fn want<'r>(
        &mut self,
        have: Option<&Route>,
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
        match (have, cx.beside.get(&want.key())) {
            (Some(have), Some(beside)) => self.want_among(have, beside, want, cx),
            (Some(have), None) if have == want => {}
            (Some(have), None) if cx.owner.owns(have) => {
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
        let stale = all().filter(|r| cx.owner.owns(r) && *r != want);
        self.steps.extend(stale.cloned().map(Step::Delete));
        if all().all(|r| r != want)
            && let Some(theirs) = all().find(|r| !cx.owner.owns(r))
        {
            self.hold(want, theirs);
        }
    }

    fn hold(&mut self, want: &Route, theirs: &Route) {
        let why = format!("somebody else's route is in its place ({theirs}); remove it or change its metric");
        self.held.push(Held { route: want.clone(), why, foreign: true });
    }

    fn unwanted(&mut self, key: &RouteKey, have: &Route, cx: &PlanCx<'_>) {
        let beside = cx.beside.get(key).into_iter().flatten();
        std::iter::once(have).chain(beside).for_each(|r| self.unwanted_one(r, cx));
    }

    fn unwanted_one(&mut self, have: &Route, cx: &PlanCx<'_>) {
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
    use crate::route::Hop;

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
