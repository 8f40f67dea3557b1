//! Things that could not be done and rest: to try them again costs a listing of the whole datastore, and what somebody
//! has to see to (a service that asks for an address no pool has) would be tried at every change of anything. A thing
//! rests until what it depends on changes, at most for a pause that grows with each failure. Pure; time is an argument.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use brindle_config_core::{Key, store::Revision};
use tokio::time::Instant;

use crate::{
    facts::Facts,
    plan::{Action, Plan, Planned},
};

/// The first pause.
const PAUSE: Duration = Duration::from_secs(10);

/// What an action depends on beside what it names itself.
type Basis = Vec<(Key, Revision)>;

/// One thing that failed.
#[derive(Clone, Debug)]
struct Rest {
    action: Action,
    basis: Basis,
    pause: Duration,
    until: Instant,
}

/// All of them, by what they are called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rests(BTreeMap<String, Rest>);

impl Rests {
    /// It could not be done. `most`: the longest pause.
    pub(crate) fn failed(&mut self, action: &Action, facts: &Facts, most: Duration, now: Instant) {
        let name = action.to_string();
        let before = self.0.get(&name).map(|r| r.pause);
        let pause = before.map_or(PAUSE, |p| (p * 2).min(most.max(PAUSE)));
        let rest = Rest { action: action.clone(), basis: basis(action, facts), pause, until: now + pause };
        self.0.insert(name, rest);
    }

    /// It is done, or is another thing now.
    pub(crate) fn ended(&mut self, action: &Action) {
        self.0.remove(&action.to_string());
    }

    /// What is no more to be done is forgotten, and so is how long it rested.
    pub(crate) fn keep(&mut self, plan: &Plan) {
        if !self.0.is_empty() {
            let names: BTreeSet<String> = plan.actions.iter().map(|p| p.action.to_string()).collect();
            self.0.retain(|name, _| names.contains(name));
        }
    }

    /// What of a plan is to be tried now.
    pub(crate) fn awake<'p>(
        &'p self,
        plan: &'p Plan,
        facts: &'p Facts,
        now: Instant,
    ) -> impl Iterator<Item = &'p Planned> {
        plan.actions.iter().filter(move |p| !self.rests(&p.action, facts, now))
    }

    fn rests(&self, action: &Action, facts: &Facts, now: Instant) -> bool {
        let Some(rest) = self.0.get(&action.to_string()) else { return false };
        now < rest.until && rest.action == *action && rest.basis == basis(action, facts)
    }

    /// When the next of them is tried again whatever happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.values().map(|r| r.until).min()
    }
}

/// An address is given from the pools of load balancers and what their blocks have free. Everything else names what it
/// was planned from: a revision, or sequence numbers.
fn basis(action: &Action, facts: &Facts) -> Basis {
    match action {
        Action::Bind { .. } => facts.balancer_stock(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;

    use super::*;
    use crate::plan::Wanted;

    fn plan(actions: Vec<Action>) -> Plan {
        let planned = |action| Planned { action, why: String::new() };
        Plan { actions: actions.into_iter().map(planned).collect(), ..Plan::default() }
    }

    fn bind(name: &str) -> Action {
        let service = Key::new(Kind::Service, Some("shop"), name);
        Action::Bind { service, handle: name.into(), wanted: Wanted::Any { v6: false, pools: Vec::new() } }
    }

    #[tokio::test]
    async fn pauses_grow_and_end_with_the_thing() {
        let (facts, most) = (Facts::default(), Duration::from_secs(60));
        let mut rests = Rests::default();
        let mut now = Instant::now();
        let all = plan(vec![bind("a"), bind("b")]);
        assert_eq!(rests.awake(&all, &facts, now).count(), 2);
        let mut pauses = Vec::new();
        for _ in 0..5 {
            rests.failed(&all.actions[0].action, &facts, most, now);
            assert_eq!(rests.awake(&all, &facts, now).count(), 1, "only what failed rests");
            let next = rests.next().unwrap();
            pauses.push(next.duration_since(now).as_secs());
            now = next;
            assert_eq!(rests.awake(&all, &facts, now).count(), 2);
        }
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
        rests.keep(&plan(vec![bind("b")]));
        assert_eq!(rests.next(), None);
    }

    #[tokio::test]
    async fn what_was_planned_from_something_else_does_not_rest() {
        let status = |revision| Action::Status {
            service: Key::new(Kind::Service, Some("shop"), "a"),
            revision: Revision(revision),
            ingress: Vec::new(),
        };
        let (facts, now) = (Facts::default(), Instant::now());
        let mut rests = Rests::default();
        rests.failed(&status(1), &facts, PAUSE, now);
        assert_eq!(rests.awake(&plan(vec![status(1)]), &facts, now).count(), 0);
        assert_eq!(rests.awake(&plan(vec![status(2)]), &facts, now).count(), 1);
    }
}
