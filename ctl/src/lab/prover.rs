//! `lab ping`: opens a socket in every pod and runs the proof. Nothing but the pods' own kernels takes part: agents
//! may be dead.

use anyhow::{Context as _, Result, bail};
use brindle_kernel::{icmp::EchoSocket, netlink::Rtnl};

use super::{
    build,
    plan::{LabPlan, UPLINK},
    progress::Progress,
    proof::{Proof, Prover, prove},
    render,
    state::{LabDir, LabState, Phase},
};
use crate::{Outcome, args::Format, out};

/// Runs the proof over all attached pods, or only from and to some.
pub(crate) fn run(state: &LabState, from: Option<&str>, to: Option<&str>) -> Result<Proof> {
    let plan = &state.plan;
    let chosen = |filter: Option<&str>, pod: &str, node: &str| filter.is_none_or(|f| f == pod || f == node);
    let (mut provers4, mut sockets4) = (Vec::new(), Vec::new());
    let (mut provers6, mut sockets6) = (Vec::new(), Vec::new());
    for (node, pod) in plan.pods() {
        let Some(attached) = state.pods.get(&pod.name) else { continue };
        let (sends, answers) = (chosen(from, &pod.name, &node.name), chosen(to, &pod.name, &node.name));
        if !sends && !answers {
            continue;
        }
        let ns = build::open(&pod.namespace)?;
        let mtu = Rtnl::open_in(&ns)?
            .link_by_name(UPLINK)?
            .with_context(|| format!("{} has no {UPLINK}", pod.name))?
            .mtu;
        for address in &attached.addresses {
            let open = if address.is_ipv4() { EchoSocket::open } else { EchoSocket::open6 };
            let socket = ns.run(open)?.with_context(|| format!("cannot probe from {}", pod.name))?;
            let (provers, sockets) = match address.is_ipv4() {
                true => (&mut provers4, &mut sockets4),
                false => (&mut provers6, &mut sockets6),
            };
            sockets.push(socket);
            provers.push(Prover {
                pod: pod.name.clone(),
                node: node.name.clone(),
                segment: node.segment.clone(),
                address: *address,
                mtu: usize::try_from(mtu).unwrap_or(0),
                sends,
                answers,
            });
        }
    }
    // The low half of our pid keeps two proofs at the same time apart.
    let id = std::process::id() as u16;
    match (provers4.is_empty(), provers6.is_empty()) {
        (_, true) => prove(provers4, &sockets4, id),
        (true, false) => prove(provers6, &sockets6, id),
        // All pods of a lab have the same families, so the two are about the same pods.
        (false, false) => Ok(prove(provers4, &sockets4, id)?.with("IPv6", prove(provers6, &sockets6, id)?)),
    }
}

fn check_filter(plan: &LabPlan, name: Option<&String>) -> Result<()> {
    if let Some(name) = name
        && plan.node(name).is_none()
        && !plan.pods().any(|(_, p)| p.name == *name)
    {
        bail!("there is no node and no pod {name:?} in lab {:?}", plan.name);
    }
    Ok(())
}

/// `lab ping`.
pub(crate) fn ping(name: &str, from: Option<String>, to: Option<String>, format: Format) -> Result<Outcome> {
    super::need_root()?;
    let state = LabDir::of(name)?.load_existing()?;
    if state.phase != Phase::Up && state.pods.is_empty() {
        bail!("lab {name:?} has no pods yet");
    }
    check_filter(&state.plan, from.as_ref())?;
    check_filter(&state.plan, to.as_ref())?;
    let progress = Progress::new(format);
    let proof = run(&state, from.as_deref(), to.as_deref())?;
    let mut summary = proof.summary();
    let unattached: Vec<_> = state
        .plan
        .pods()
        .filter(|(_, p)| !state.pods.contains_key(&p.name))
        .map(|(_, p)| p.name.as_str())
        .collect();
    summary.ok &= unattached.is_empty();
    match format {
        Format::Json => out::json(&summary),
        Format::Table => {
            progress.say(render::matrix(&proof, progress.colours()).trim_end());
            if !unattached.is_empty() {
                progress.say(&format!("without an address, so not asked: {}", unattached.join(" ")));
            }
            for hint in super::breaks::hints(&state) {
                progress.say(&hint);
            }
        }
    }
    Ok(if summary.ok { Outcome::Ok } else { Outcome::Degraded })
}
