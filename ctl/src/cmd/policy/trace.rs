//! `policy trace A B:PORT`: the verdict on a packet, node by node, with the rule that decided at each end.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
};

use anyhow::{Context as _, Result, bail};
use brindle_config_core::{policy::IntOrString, store::Entry, validate::policy as read};
use brindle_felix_core::{
    calc::{Graph, Scope},
    policy::{
        active::{EndpointId, Interface, PolicyId, Protocol, ToHostAction},
        state::PolicyState,
        verdict::{Direction, Packet, Place, Reason, Step, verdict},
    },
};
use serde_json::{Value, json};

use super::{
    args::TraceArgs,
    ends::{self, End},
    nat::Translated,
    service::{self, Behind},
    way::{self, Door, Nodes, Through},
};
use crate::{
    Outcome,
    args::Format,
    out::{self, Mood, paint, say},
};

/// One step and where it happened.
struct Seen {
    node: Option<String>,
    step: Step,
    staged: Vec<PolicyId>,
    door: Door,
    /// The variable of the agent's environment by which it may be otherwise: it stands above FelixConfiguration.
    unless: Option<&'static str>,
}

impl Seen {
    /// The host endpoint it is about.
    fn host(&self) -> Option<String> {
        self.step.endpoint.as_ref().filter(|e| matches!(e, EndpointId::Host { .. })).map(ToString::to_string)
    }
}

/// What the datastore does not tell.
#[derive(Default)]
struct Doubts {
    /// Resources with problems.
    problems: Vec<String>,
    /// Host endpoints known by addresses alone, and what depends on which device has those.
    contested: Vec<String>,
    /// The packet is for a service: policy sees another destination.
    service: Option<Behind>,
    /// Beyond the node of the sender policy sees another source.
    translated: Option<Translated>,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Allowed,
    Denied,
    /// It may take several interfaces, and not all host endpoints say the same.
    Depends,
    /// Allowed, unless two host endpoints known by addresses turn out to be of one device.
    Unless,
}

pub(super) fn trace(entries: &[Entry], args: &TraceArgs, format: Format) -> Result<Outcome> {
    let protocol = args.proto.parse::<i64>().map_or_else(|_| args.proto.as_str().into(), IntOrString::Int);
    let protocol =
        Protocol(read::protocol(&protocol).map_err(|e| anyhow::anyhow!("--proto {}: {e}", args.proto))?);
    let (to, port) = ends::with_port(&args.to)?;
    match (protocol.has_ports(), port) {
        (true, None) => {
            let end = if to.parse::<Ipv6Addr>().is_ok() { format!("[{to}]") } else { to.to_owned() };
            bail!("{to}: a port is needed with {protocol}; write {end}:PORT")
        }
        (false, Some(_)) => bail!("{}: {protocol} has no ports; leave the port out", args.to),
        _ => {}
    }
    let nodes = Nodes::new(entries);
    let through = Through::new(entries, &args.through)?;
    let end = |typed: &str| -> Result<End> {
        let mut end = ends::find(entries, &nodes, typed)?;
        // Whoever says which interface it is means that one, whatever the address is known by.
        if end.by_address && through.says(end.node.as_deref()) {
            (end.endpoint, end.host) = (None, true);
        }
        Ok(end)
    };
    let (from, to) = (end(&args.from)?, end(to)?);
    let (src, dst) = addresses(&from, &to, protocol)?;
    let icmp = match protocol {
        Protocol::ICMP => Some(icmp(args.icmp.as_deref().unwrap_or("8/0"))?),
        Protocol::ICMPV6 => Some(icmp(args.icmp.as_deref().unwrap_or("128/0"))?),
        _ => None,
    };
    let ports = protocol.has_ports();
    let packet = Packet {
        src,
        dst,
        protocol,
        src_port: if ports { args.source_port } else { 0 },
        dst_port: port.unwrap_or(0),
        icmp,
    };
    let mut doubts = Doubts::default();
    if to.endpoint.is_none() && !to.host {
        doubts.service = service::behind(entries, dst, protocol, packet.dst_port);
    }
    let mut steps = Vec::new();
    let mut fate = Fate::Allowed;
    // What a pod sends to itself meets no rule of the node.
    let legs = if to_itself(&from, &to) { Vec::new() } else { legs(&from, &to) };
    // As it is where it is looked at.
    let mut met = packet;
    for leg in legs {
        let src = met.src;
        let mut graph = Graph::new(Scope::Node(leg.node.clone()));
        entries.iter().for_each(|e| graph.put(&e.key, &e.value));
        graph.set_in_sync();
        let mut state = PolicyState::default();
        for delta in graph.flush() {
            state.apply(&delta).map_err(|e| anyhow::anyhow!("the calculation contradicts itself: {e}"))?;
        }
        let doors = match leg.beyond(&from, &to) {
            None => vec![leg.inside(&state)],
            Some((far, out)) => {
                let addresses = if out { (far, src, dst) } else { (far, dst, src) };
                way::doors(&state, &nodes, &through, (&leg.node, out), addresses)
            }
        };
        let unnamed = way::unnamed(&state);
        let mut closed = state.clone();
        closed.contested.extend(unnamed.iter().map(|id| (id.clone(), String::new())));
        let mut found: Vec<(Door, Step)> = Vec::new();
        let mut allowed = Vec::new();
        let mut contested = false;
        for door in doors {
            let at = |spot: &Spot| spot.place(door.endpoint.as_ref());
            let said = verdict(&state, &met, &at(&leg.from), &at(&leg.to));
            allowed.push(said.allowed());
            contested |= said.allowed() && !verdict(&closed, &met, &at(&leg.from), &at(&leg.to)).allowed();
            // Interfaces without a host endpoint decide nothing.
            for step in said.steps.into_iter().filter(|s| s.reason != Reason::NotPoliced) {
                // A workload says the same whichever way it is.
                if !found.iter().any(|(_, s)| *s == step) {
                    found.push((door.clone(), step));
                }
            }
        }
        if allowed.len() > 1 && !matches!(leg.from, Spot::At(_)) {
            found.sort_by_key(|(_, s)| matches!(s.endpoint, Some(EndpointId::Workload { .. })));
        }
        steps.extend(found.into_iter().map(|(door, step)| Seen {
            node: Some(leg.node.clone()),
            staged: step.endpoint.as_ref().map(|e| graph.staged(e)).unwrap_or_default(),
            unless: overruled_by(&step, &met, &leg),
            door: if matches!(step.endpoint, Some(EndpointId::Host { .. })) { door } else { Door::default() },
            step,
        }));
        for (key, lines) in graph.problems() {
            doubts.problems.extend(lines.into_iter().map(|l| format!("{key}: {l}")));
        }
        if contested {
            let names: Vec<String> = unnamed.iter().map(ToString::to_string).collect();
            doubts.contested.push(format!(
                "{}: {} are without interfaceName. If addresses of two are of one device, all but failsafe ports is \
                 dropped there; `brindlectl status` tells.",
                leg.node,
                names.join(", ")
            ));
        }
        match (allowed.contains(&true), allowed.contains(&false)) {
            (true, true) => fate = Fate::Depends,
            (true, false) if contested && fate == Fate::Allowed => fate = Fate::Unless,
            (true, false) => {}
            (false, _) => {
                fate = Fate::Denied;
                break;
            }
        }
        if from.node.as_ref() == Some(&leg.node) && from.node != to.node {
            doubts.translated = Translated::of(entries, &nodes, &leg.node, src, dst);
            met.src = doubts.translated.as_ref().and_then(|t| t.source).unwrap_or(src);
        }
    }
    doubts.problems.sort();
    doubts.problems.dedup();
    match format {
        Format::Json => out::json(&as_json(&from, &to, &packet, &steps, &doubts, fate)),
        Format::Table => show(&from, &to, &packet, &steps, &doubts, fate),
    }
    Ok(if fate == Fate::Allowed { Outcome::Ok } else { Outcome::Degraded })
}

fn icmp(typed: &str) -> Result<(u8, u8)> {
    let (kind, code) = typed.split_once('/').unwrap_or((typed, "0"));
    let octet = |t: &str| t.parse::<u8>().with_context(|| format!("--icmp {typed}: expected TYPE/CODE"));
    Ok((octet(kind)?, octet(code)?))
}

fn to_itself(from: &End, to: &End) -> bool {
    matches!(from.endpoint, Some(EndpointId::Workload { .. })) && from.endpoint == to.endpoint
}

/// An address of each, of the same family; IPv4 first, unless the protocol is one of IPv6.
fn addresses(from: &End, to: &End, protocol: Protocol) -> Result<(IpAddr, IpAddr)> {
    let families: &[bool] = match protocol {
        Protocol::ICMP => &[true],
        Protocol::ICMPV6 => &[false],
        _ => &[true, false],
    };
    for &v4 in families {
        let of = |e: &End| e.addresses.iter().copied().find(|a| a.is_ipv4() == v4);
        if let (Some(a), Some(b)) = (of(from), of(to)) {
            return Ok((a, b));
        }
    }
    for e in [from, to] {
        if e.addresses.is_empty() {
            bail!("{} has no address in its resource; give the address instead", e.name);
        }
    }
    match families {
        [v4] => {
            let family = if *v4 { "IPv4" } else { "IPv6" };
            bail!(
                "{} and {} do not both have an {family} address, which {protocol} needs",
                from.name,
                to.name
            )
        }
        _ => bail!("{} and {} have no addresses of the same family", from.name, to.name),
    }
}

/// One side of a node.
enum Spot {
    /// A workload, or the node itself by an interface that was named.
    At(Place),
    /// The node itself, by an interface to be found.
    Host,
    /// Beyond the node, by an interface to be found.
    Beyond,
}

impl Spot {
    fn of(e: &End) -> Self {
        match &e.endpoint {
            Some(id @ EndpointId::Workload { .. }) => Self::At(Place::Workload(id.clone())),
            Some(id) => Self::At(Place::Host(Some(id.clone()))),
            None if e.host => Self::Host,
            None => Self::Beyond,
        }
    }

    /// What is beyond the node of an end: traffic of the node itself leaves and arrives by the interface of its host
    /// endpoint, when one was named.
    fn beyond(e: &End) -> Self {
        match &e.endpoint {
            Some(id @ EndpointId::Host { .. }) => Self::At(Place::Outside(Some(id.clone()))),
            _ => Self::Beyond,
        }
    }

    fn place(&self, door: Option<&EndpointId>) -> Place {
        match self {
            Self::At(place) => place.clone(),
            Self::Host => Place::Host(door.cloned()),
            Self::Beyond => Place::Outside(door.cloned()),
        }
    }
}

/// The way over one node.
struct Leg {
    node: String,
    from: Spot,
    to: Spot,
}

impl Leg {
    /// The end that lies beyond this node by an interface to be found, and whether the packet leaves by it.
    fn beyond<'a>(&self, from: &'a End, to: &'a End) -> Option<(&'a End, bool)> {
        match (&self.from, &self.to) {
            (_, Spot::Beyond) => Some((to, true)),
            (Spot::Beyond, _) => Some((from, false)),
            _ => None,
        }
    }

    /// What stands for the node itself towards its own workloads: no interface that has a name.
    fn inside(&self, state: &PolicyState) -> Door {
        let any = state.endpoints.values().find(|e| e.host.is_some() && e.interface == Interface::Any);
        Door { endpoint: any.map(|e| e.id.clone()), ..Door::default() }
    }
}

/// The nodes the packet meets policy on.
fn legs(from: &End, to: &End) -> Vec<Leg> {
    let leg = |node: &str, from, to| Leg { node: node.to_owned(), from, to };
    match (&from.node, &to.node) {
        (Some(a), Some(b)) if a == b => vec![leg(a, Spot::of(from), Spot::of(to))],
        (a, b) => {
            let first = a.iter().map(|node| leg(node, Spot::of(from), Spot::beyond(from)));
            first.chain(b.iter().map(|node| leg(node, Spot::beyond(to), Spot::of(to)))).collect()
        }
    }
}

/// The variable of an agent that would change what a setting decided here, if it is set: what agents were started with
/// is not in the datastore.
fn overruled_by(step: &Step, packet: &Packet, leg: &Leg) -> Option<&'static str> {
    let failsafe = match step.direction {
        Direction::Ingress => "FELIX_FAILSAFEINBOUNDHOSTPORTS",
        Direction::Egress => "FELIX_FAILSAFEOUTBOUNDHOSTPORTS",
    };
    let own = |spot: &Spot| matches!(spot, Spot::Host | Spot::At(Place::Host(_)));
    let hosts_own = match step.direction {
        Direction::Ingress => own(&leg.to),
        Direction::Egress => own(&leg.from),
    };
    match step.reason {
        Reason::ToHost(_) => Some("FELIX_DEFAULTENDPOINTTOHOSTACTION"),
        Reason::Failsafe | Reason::Discovery => Some(failsafe),
        Reason::Encapsulated if packet.protocol == Protocol::IPIP => {
            Some("FELIX_ALLOWIPIPPACKETSFROMWORKLOADS")
        }
        Reason::Encapsulated => Some("FELIX_ALLOWVXLANPACKETSFROMWORKLOADS"),
        // A port that is no failsafe port here may be one there.
        _ => (!step.allowed
            && hosts_own
            && packet.protocol.has_ports()
            && matches!(step.endpoint, Some(EndpointId::Host { .. })))
        .then_some(failsafe),
    }
}

/// A sentence for the reason.
fn why(step: &Step) -> String {
    match &step.reason {
        Reason::Rule { policy, rule, annotations } => {
            let notes: Vec<String> = annotations.iter().map(|(k, v)| format!(" {k}={v}")).collect();
            format!("{policy}, {} rule {}{}", step.direction, rule + 1, notes.concat())
        }
        Reason::EndOfTier { tier } => {
            format!("end of tier {tier}: its policies apply, none of their rules matched")
        }
        Reason::Profile { name, rule } => format!("profile {name}, {} rule {}", step.direction, rule + 1),
        Reason::NoProfile => "neither a policy nor a profile allows it".into(),
        Reason::Closed(reason) => format!("closed: {reason}"),
        Reason::UnknownEndpoint => "the endpoint's policy is not known".into(),
        Reason::Failsafe => "failsafe port".into(),
        Reason::Discovery => "neighbor discovery, which failsafe ports need over IPv6".into(),
        Reason::ToRouter => {
            "to its own node: neighbor discovery and multicast listener reports are always taken".into()
        }
        Reason::ToHost(action) => {
            let action = match action {
                ToHostAction::Drop => "Drop",
                ToHostAction::Return => "Return",
                ToHostAction::Accept => "Accept",
            };
            format!("to its own node: defaultEndpointToHostAction is {action}")
        }
        Reason::FromOwnHost => "from its own node: never policed".into(),
        Reason::Encapsulated => "pods may not send VXLAN or IPIP".into(),
        Reason::NoForwardPolicy => "no policy for forwarded traffic decides".into(),
        Reason::NotPoliced => "no HostEndpoint stands for the interface".into(),
    }
}

fn label(e: &End, address: IpAddr) -> String {
    let mut inside: Vec<String> = Vec::new();
    inside.extend((e.name != address.to_string()).then(|| address.to_string()));
    inside.extend(e.node.clone());
    if inside.is_empty() { e.name.clone() } else { format!("{} ({})", e.name, inside.join(", ")) }
}

fn end_of<'a>(id: Option<&EndpointId>, from: &'a End, to: &'a End) -> Option<&'a End> {
    let id = id?;
    [from, to].into_iter().find(|e| e.endpoint.as_ref() == Some(id))
}

fn show(from: &End, to: &End, p: &Packet, steps: &[Seen], doubts: &Doubts, fate: Fate) {
    let colours = out::colours();
    let port = if p.protocol.has_ports() { format!(" port {}", p.dst_port) } else { String::new() };
    say!("{}\n  -> {}, {}{port}\n", label(from, p.src), label(to, p.dst), p.protocol);
    let verdict = |yes: bool| match yes {
        true => paint("allowed", Mood::Good, colours),
        false => paint("denied", Mood::Bad, colours),
    };
    if let Some(Behind { service, ends }) = &doubts.service {
        say!(
            "{} is an address of service {service}, which the node replaces before policy looks at the packet.",
            p.dst
        );
        match ends.as_slice() {
            [] => say!("Nothing is ready behind that port of it.\n"),
            [end] => say!("Behind that port of it is {end}: trace to that.\n"),
            [end, ..] => say!(
                "Behind that port of it {} are ready: trace to one of them, for example {end}.\n",
                ends.len()
            ),
        }
    }
    if to_itself(from, to) {
        say!("The packet never leaves the pod: no policy looks at it.");
    } else if steps.is_empty() {
        say!("Neither end is an endpoint of this cluster: no policy looks at it.");
    }
    // Said where it happens: behind what its node says.
    let mut translated = doubts.translated.as_ref();
    for s in steps {
        if let Some(t) = translated.take_if(|t| s.node.as_ref() != Some(&t.node)) {
            say!("{}", t.sentence());
        }
        let name = match (end_of(s.step.endpoint.as_ref(), from, to), &s.step.endpoint) {
            (Some(e), _) => e.name.clone(),
            (None, Some(id)) => id.to_string(),
            (None, None) => "the node".into(),
        };
        let node = s.node.as_deref().map(|n| format!(" on {n}")).unwrap_or_default();
        let by = s.door.interface.as_deref().map(|i| format!(", by {i}")).unwrap_or_default();
        say!("{} of {name}{node}{by}: {}", s.step.direction, verdict(s.step.allowed));
        match (s.unless, &s.node) {
            (Some(variable), Some(node)) => {
                say!("  {}, unless {variable} of the agent on {node} says otherwise", why(&s.step));
            }
            _ => say!("  {}", why(&s.step)),
        }
        for id in &s.staged {
            say!("  staged, not enforced: {id}");
        }
    }
    if let Some(t) = translated {
        say!("{}", t.sentence());
    }
    if !doubts.contested.is_empty() && fate != Fate::Denied {
        doubts.contested.iter().for_each(|line| say!("\n{line}"));
    }
    match fate {
        Fate::Allowed | Fate::Denied => say!("\nThe packet is {}.", verdict(fate == Fate::Allowed)),
        Fate::Depends => say!(
            "\nThe packet is allowed by some of these interfaces and denied by others; name the one it takes with --through."
        ),
        Fate::Unless => say!("\nThe packet is allowed, unless those addresses are of one device."),
    }
    let maybe: BTreeSet<String> = steps.iter().filter(|s| s.door.maybe).filter_map(Seen::host).collect();
    if !maybe.is_empty() {
        say!(
            "Whether the interface has an address of {}, only the node knows; if it has, name that with --through.",
            maybe.into_iter().collect::<Vec<_>>().join(" or ")
        );
    }
    if fate != Fate::Depends && steps.iter().any(|s| s.door.guessed) {
        say!(
            "Which interface it takes is not known: if it is none with a HostEndpoint, name it with --through."
        );
    }
    if !doubts.problems.is_empty() {
        say!("\nResources with problems:");
        doubts.problems.iter().for_each(|line| say!("  {line}"));
    }
}

fn as_json(from: &End, to: &End, p: &Packet, steps: &[Seen], doubts: &Doubts, fate: Fate) -> Value {
    let end = |e: &End, address: IpAddr| json!({"name": e.name, "address": address, "node": e.node});
    let steps: Vec<Value> = steps
        .iter()
        .map(|s| {
            let e = end_of(s.step.endpoint.as_ref(), from, to);
            json!({
                "node": s.node,
                "endpoint": e.map(|e| e.name.clone()).or_else(|| s.step.endpoint.as_ref().map(ToString::to_string)),
                "direction": s.step.direction,
                "interface": s.door.interface,
                "allowed": s.step.allowed,
                "reason": s.step.reason,
                "why": why(&s.step),
                "unless": s.unless,
                "staged": s.staged.iter().map(ToString::to_string).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "from": end(from, p.src),
        "to": end(to, p.dst),
        "protocol": p.protocol.to_string(),
        "port": p.protocol.has_ports().then_some(p.dst_port),
        "allowed": fate == Fate::Allowed,
        "dependsOnInterface": matches!(fate, Fate::Depends | Fate::Unless),
        "steps": steps,
        "contested": doubts.contested,
        "translated": doubts.translated.as_ref().map(Translated::json),
        "service": doubts.service.as_ref().map(|b| json!({"name": b.service, "ends": b.ends})),
        "problems": doubts.problems,
    })
}
