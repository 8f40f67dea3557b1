//! Which of the host endpoints wanted for a node can be there together. Two that stand for one interface drop everything
//! there but failsafe ports, and so do two without `interfaceName` whose addresses turn out to be of one device. Which
//! device has an address only the node knows, and it may be another one tomorrow: of those without `interfaceName` a node
//! gets one at most, and none beside one that somebody else wrote.

use std::collections::BTreeMap;

use brindle_config_core::{Resource, policy::HostEndpointSpec, store::Entry};
use serde_json::Value;

/// Names of nodes that are listed in one problem.
const LISTED: usize = 3;

/// One that is wanted, and the template that asks for it; none: the one for all interfaces.
#[derive(Debug)]
pub(super) struct Wish<'a> {
    pub(super) hep: Resource<HostEndpointSpec>,
    pub(super) template: Option<&'a str>,
}

impl Wish<'_> {
    pub(super) fn has_name_of(&self, s: &Standing<'_>) -> bool {
        self.hep.metadata.name == s.entry.key.name
    }

    /// Whether another one of its node might close its interface.
    pub(super) fn contests(&self, s: &Standing<'_>) -> bool {
        self.hep.spec.interface_name == s.interface && !self.has_name_of(s)
    }

    fn asker(&self) -> String {
        match self.template {
            Some(t) => format!("template {t:?}"),
            None => "createDefaultHostEndpoint".to_owned(),
        }
    }
}

/// One that is there.
#[derive(Debug)]
pub(super) struct Standing<'a> {
    pub(super) entry: &'a Entry,
    interface: &'a str,
}

impl<'a> Standing<'a> {
    /// With its node; also one that cannot be read otherwise, as the agent closes its interface.
    pub(super) fn of(entry: &'a Entry) -> Option<(&'a str, Self)> {
        let text = |at: &str| entry.value.pointer(at).and_then(Value::as_str);
        let interface = text("/spec/interfaceName").unwrap_or_default();
        Some((text("/spec/node")?, Self { entry, interface }))
    }
}

/// What is left out, with its reason.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) name: String,
    asker: String,
    pub(super) why: String,
}

/// Divides what is wanted for a node: what can be there, and what would contest an interface with it. Of several the
/// first in the alphabet counts, as at a device of Calico's agent.
pub(super) fn settle<'a>(mut wanted: Vec<Wish<'a>>, standing: &[Standing<'_>]) -> (Vec<Wish<'a>>, Vec<Left>) {
    wanted.sort_by(|a, b| a.hep.metadata.name.cmp(&b.hep.metadata.name));
    let (mut made, mut left): (Vec<Wish<'a>>, Vec<Left>) = (Vec::new(), Vec::new());
    for wish in wanted {
        let (name, interface) = (&wish.hep.metadata.name, &wish.hep.spec.interface_name);
        let theirs = standing.iter().find(|s| wish.contests(s));
        let theirs = theirs.map(|s| format!("HostEndpoint {}", s.entry.key.name));
        let ours = || {
            let same =
                |m: &&Wish<'_>| m.hep.spec.interface_name == *interface || m.hep.metadata.name == *name;
            made.iter().find(same).map(|m| format!("the one of {}", m.asker()))
        };
        let Some(other) = theirs.or_else(ours) else {
            made.push(wish);
            continue;
        };
        let why = if made.iter().any(|m| m.hep.metadata.name == *name) {
            format!("{other} has the same name")
        } else if interface.is_empty() {
            format!(
                "{other} has no interfaceName either, and where both have an address of one device it would drop \
                 everything; write all interfaceCIDRs into one template, or say which interfaces by interfacePattern"
            )
        } else {
            format!("{other} stands for interface {interface}, and with both it would drop everything")
        };
        left.push(Left { name: name.clone(), asker: wish.asker(), why });
    }
    (made, left)
}

/// What was left out on which nodes: one line for each cause, however many nodes there are.
#[derive(Debug, Default)]
pub(super) struct Report(BTreeMap<(String, String), Vec<String>>);

impl Report {
    pub(super) fn add(&mut self, left: &Left, node: &str) {
        self.0.entry((left.asker.clone(), left.why.clone())).or_default().push(node.to_owned());
    }

    pub(super) fn lines(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|((asker, why), nodes)| {
            // A number would change, and be told anew, with each node that comes.
            let more = if nodes.len() > LISTED { " and others" } else { "" };
            let listed: Vec<&str> = nodes.iter().take(LISTED).map(String::as_str).collect();
            format!("{asker} makes no host endpoint on {}{more}: {why}", listed.join(", "))
        })
    }
}
