//! The lab: a small cluster of real agents in network namespaces on one machine. `topology` is what a person asks
//! for, `plan` every name and address of it, `up` the stages, `converge` the waiting, `proof` the proof, `down` the
//! end. See docs/design/lab.md.

mod agents;
mod breaks;
mod build;
mod converge;
mod down;
mod exec;
mod peers;
mod plan;
mod pods;
pub(crate) mod progress;
mod proof;
mod prover;
mod render;
pub(crate) mod state;
mod status;
mod store;
pub(crate) mod topology;
mod up;
pub(crate) mod wait;

use anyhow::{Result, bail};

pub(crate) use status::list;

use crate::{Outcome, args::Format, meaning::LabWhat};

/// Carries out a command on the lab called `name`.
pub(crate) fn run(name: &str, what: LabWhat, format: Format) -> Result<Outcome> {
    match what {
        LabWhat::Up { topology, origin } => up::up(name, &topology, origin.as_ref(), format),
        LabWhat::Status => status::status(name, format),
        LabWhat::Ping { from, to } => prover::ping(name, from, to, format),
        LabWhat::Exec { target, argv } => exec::exec(name, &target, &argv, format),
        LabWhat::Break(what) => breaks::break_it(name, what, format),
        LabWhat::Heal => up::heal(name, format),
        LabWhat::AddNode { name: node, segment, address, pods } => {
            up::add_node(name, up::NewNode { name: node, segment, address, pods }, format)
        }
        LabWhat::Down => down::down(name, format),
    }
}

/// Bits of CapEff: CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN.
const NEEDED: u64 = 1 << 12 | 1 << 13 | 1 << 21;

/// Refuses to start what cannot end well.
fn need_root() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|v| u64::from_str_radix(v.trim(), 16).ok())
        .unwrap_or(0);
    if effective & NEEDED != NEEDED {
        bail!("a lab makes network namespaces and needs root for it: run it with sudo");
    }
    Ok(())
}
