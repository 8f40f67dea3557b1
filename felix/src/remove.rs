//! Takes out of the kernel what agents of this node left there, for a node that is to have none any more: rules and sets of
//! every back end, the process that carries packets with its device, and, where that is wished for, routes to other nodes.
//! Devices, addresses and routes of pods stay, and so does the kernel's tunnel device: pods go on, and whoever comes next
//! takes them over. What is ours is what the agents' own plans say of a node on which nothing is wanted.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use brindle_carrier::control::Client;
use brindle_felix_core::{
    ipip_filter, plan,
    rules::{
        ir::Family,
        nft, nft_plan,
        sets::{self, WantedSets},
        table_plan,
    },
};
use brindle_kernel::{
    api::{Kernel, Linux},
    netfilter::{Netfilter, NfError, Tools, Variant},
    netlink::{NetlinkError, RouteChange, RouteFilter},
};

use crate::{convert, policy::ip, tunnel};

/// How long the kernel may keep a set in use whose rules are gone: it frees those of nf_tables a little later.
const FREED: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// What is to go.
#[derive(Clone, Debug)]
pub struct Removal {
    /// Where agents had their own files.
    pub state_dir: PathBuf,
    /// Routes to other nodes and the blackholes of this node's blocks as well.
    pub routes: bool,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What became of it, a line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    pub done: Vec<String>,
    pub failed: Vec<String>,
}

impl Removal {
    /// Removes, in the network namespace of the calling thread. What fails does not keep the rest from going.
    ///
    /// # Errors
    /// The kernel's, before anything was removed.
    pub fn run(&self) -> Result<Removed, NetlinkError> {
        let (mut kernel, _) = Linux::open()?;
        Ok(self.run_on(&mut Tools::default(), &mut kernel))
    }

    fn run_on(&self, nf: &mut dyn Netfilter, kernel: &mut dyn Kernel) -> Removed {
        let mut out = Removed::default();
        for family in Family::ALL {
            self.rules(family, nf, &mut out);
        }
        // Rules refer to them.
        self.sets(nf, &mut out);
        self.carrier(kernel, &mut out);
        self.routes(kernel, &mut out);
        out
    }

    fn gone(&self) -> &'static str {
        if self.dry_run { "would be removed" } else { "removed" }
    }

    fn rules(&self, family: Family, nf: &mut dyn Netfilter, out: &mut Removed) {
        let legacy = nf.probe(Variant::Legacy, ip(family));
        // A kernel may know one make only; who has tables of that one says so.
        let alone = matches!(legacy, Ok(Some(_)));
        let refused = |e: &NfError| alone && matches!(e, NfError::Refused { .. });
        match nf.nft_list(ip(family), nft::TABLE) {
            Ok(None) => {}
            Ok(Some(json)) => {
                let what = format!("nftables: table {} {}", nft::family(family), nft::TABLE);
                let done = nft_plan::removal(family, nft::TABLE, &json).map_err(|e| e.to_string()).and_then(
                    |inputs| {
                        let mut inputs = inputs.iter().filter(|i| !i.is_empty() && !self.dry_run);
                        inputs.try_for_each(|i| nf.nft(i).map_err(|e| e.to_string()))
                    },
                );
                self.tell(what, done, out);
            }
            Err(e) if refused(&e) => {}
            Err(e) => out.failed.push(format!("nftables: {e}")),
        }
        let other = nf.probe(Variant::Nft, ip(family));
        for (variant, text) in [(Variant::Legacy, legacy), (Variant::Nft, other)] {
            match text {
                Ok(None) => {}
                Ok(Some(text)) => self.tables(variant, family, &text, nf, out),
                Err(e) if refused(&e) => {}
                Err(e) => out.failed.push(format!("{variant}: {e}")),
            }
        }
    }

    /// What one make of iptables holds of ours.
    fn tables(
        &self,
        variant: Variant,
        family: Family,
        text: &str,
        nf: &mut dyn Netfilter,
        out: &mut Removed,
    ) {
        let mut plan = match table_plan::removal(text) {
            Ok(plan) => plan,
            Err(e) => return out.failed.push(format!("{variant}: {e}")),
        };
        if family == Family::V4
            && let Some(filter) = ipip_filter::remove(text)
        {
            plan.input.push_str(&filter);
            plan.chains += 1;
            plan.rules += filter.lines().filter(|l| l.starts_with("-D ")).count();
        }
        if plan.input.is_empty() {
            return;
        }
        let what = format!(
            "{variant}, IPv{}: {} chains, and {} rules in chains of others",
            family.digit(),
            plan.chains,
            plan.rules
        );
        nf.set_variant(variant);
        let done = if self.dry_run { Ok(()) } else { nf.restore(ip(family), &plan.input) };
        self.tell(what, done.map_err(|e| e.to_string()), out);
    }

    fn sets(&self, nf: &mut dyn Netfilter, out: &mut Removed) {
        let (begin, mut most) = (Instant::now(), 0);
        loop {
            let text = match nf.save_sets() {
                Ok(text) => text,
                Err(e) => return out.failed.push(format!("ipset: {e}")),
            };
            let mut input: String = Family::ALL
                .map(|f| sets::plan(f, &WantedSets::new(), &sets::parse(f, &text), 0, None).after)
                .concat();
            input.push_str(&ipip_filter::forget(&text));
            most = most.max(input.lines().count());
            if most == 0 {
                return;
            }
            let done = if self.dry_run || input.is_empty() { Ok(()) } else { nf.restore_sets(&input) };
            match done {
                // Some went; the others are looked for anew.
                Err(NfError::Refused { .. }) if begin.elapsed() < FREED => std::thread::sleep(PAUSE),
                done => {
                    let done = done.map_err(|e| format!("{e}; is it in a rule of somebody else's?"));
                    return self.tell(format!("ipset: {most} sets"), done, out);
                }
            }
        }
    }

    /// The process that carries packets where the kernel has no ipip. Packets for other segments end with it.
    fn carrier(&self, kernel: &mut dyn Kernel, out: &mut Removed) {
        let links = match kernel.links() {
            Ok(links) => links,
            Err(e) => return out.failed.push(format!("devices: {e}")),
        };
        for link in links.iter().filter(|l| tunnel::is_carriers(l)) {
            let mut done = Ok(());
            if !self.dry_run {
                end_carrier(&self.state_dir);
                done = match kernel.del_link(link.index) {
                    Err(e) if !e.is_not_found() => Err(e.to_string()),
                    _ => Ok(()),
                };
            }
            self.tell(format!("device {} of brindle-ipip", link.name), done, out);
        }
    }

    fn routes(&self, kernel: &mut dyn Kernel, out: &mut Removed) {
        let read = kernel.links().and_then(|links| Ok((links, kernel.routes(&RouteFilter::main())?)));
        let (links, routes) = match read {
            Ok(read) => read,
            Err(e) => return out.failed.push(format!("routes: {e}")),
        };
        let mut names = convert::Names::default();
        for l in &links {
            names.set(l.index, &l.name);
        }
        let all: Vec<_> = routes.iter().filter_map(|r| convert::from_kernel(r, &names)).collect();
        let ours = plan::removal(all.iter());
        if ours.is_empty() {
            return;
        }
        let what =
            format!("{} routes to other nodes, or blackholes of this node's blocks (proto 80)", ours.len());
        if !self.routes {
            return out.done.push(format!("{what}: left, packets between nodes need them"));
        }
        let mut refused = Vec::new();
        if !self.dry_run {
            let changes = ours.iter().map(|r| convert::to_kernel(r, &names).map(RouteChange::Delete));
            match changes.collect::<Result<Vec<_>, String>>() {
                Ok(changes) => {
                    let report = kernel.write_routes(&changes);
                    let errors = report.refused.iter().filter(|r| !r.error.is_not_found());
                    refused.extend(errors.map(|r| r.error.to_string()));
                    refused.extend(report.broken.map(|e| e.to_string()));
                }
                Err(e) => refused.push(e),
            }
        }
        let done = if refused.is_empty() { Ok(()) } else { Err(refused.join("; ")) };
        self.tell(what, done, out);
    }

    fn tell(&self, what: String, done: Result<(), String>, out: &mut Removed) {
        match done {
            Ok(()) => out.done.push(format!("{what}: {}", self.gone())),
            Err(e) => out.failed.push(format!("{what}: cannot be removed: {e}")),
        }
    }
}

fn end_carrier(state_dir: &Path) {
    let asked = Client::connect(&state_dir.join("carrier.sock")).and_then(|c| c.shutdown(false));
    if let Err(e) = asked {
        // One that is dead cannot take its device along.
        tracing::debug!(error = %e, "the carrier was asked to end");
    }
}

#[cfg(test)]
mod tests {
    use brindle_kernel::{
        fake::{FilterWorld, NfCall, World},
        netfilter::IpVersion,
        netlink::{NextHop, Route},
    };

    use super::*;

    const RULES: &str = "*filter\n:brindle-FORWARD - [0:0]\n:theirs - [0:0]\n-I FORWARD 1 -j brindle-FORWARD\n\
        -A FORWARD -j theirs\n-A brindle-FORWARD -m set --match-set brindle4-a src -j DROP\n-A theirs -j ACCEPT\nCOMMIT\n";

    fn wish(routes: bool, dry_run: bool) -> Removal {
        Removal { state_dir: "/nonexistent/brindle".into(), routes, dry_run }
    }

    /// Both makes of iptables, nftables, sets, a carrier, and routes of every kind.
    fn node() -> (FilterWorld, World) {
        let (filter, world) = (FilterWorld::new(), World::new());
        let mut nf = filter.open();
        nf.restore_sets(
            "create brindle4-a hash:net family inet maxelem 4\ncreate brindle-ipip-nodes hash:net family inet maxelem 4\n\
             create theirs hash:net family inet maxelem 4\n",
        )
        .unwrap();
        for (variant, version) in [(Variant::Legacy, IpVersion::V4), (Variant::Nft, IpVersion::V6)] {
            filter.interfere(variant, version, RULES).unwrap();
        }
        let ipip = "*filter\n:brindle-ipip - [0:0]\n-I INPUT 1 -p 4 -j brindle-ipip\n-A brindle-ipip -j DROP\nCOMMIT\n";
        filter.interfere(Variant::Nft, IpVersion::V4, ipip).unwrap();
        nf.nft("add table ip brindle\nadd chain ip brindle pods\n").unwrap();
        world.support("tun");
        let mut kernel = world.other();
        kernel.add_link("tunl0", "tun", None).unwrap();
        let (eth0, pod) = (world.add_device("eth0", true), world.add_device("cali1", true));
        let hop = NextHop {
            dev: Some(eth0),
            gateway: Some([192, 0, 2, 7].into()),
            onlink: true,
            weight: 1,
            dead: false,
        };
        let net = |text: &str| text.parse().unwrap();
        let mut remote = Route::new(net("10.0.1.0/26")).with_protocol(80).with_metric(1024);
        remote.hops.push(hop.clone());
        let mut theirs = Route::new(net("10.9.0.0/16")).with_protocol(4);
        theirs.hops.push(hop);
        let all = [
            remote,
            theirs,
            Route::blackhole(net("10.0.0.0/26")).with_protocol(80).with_metric(1024),
            Route::blackhole(net("10.8.0.0/16")).with_protocol(4),
            Route::new(net("10.0.0.5/32")).dev(pod).with_protocol(3).with_metric(1024),
        ];
        let report = kernel.write_routes(&all.map(RouteChange::Add));
        assert_eq!(report.done, 5);
        (filter, world)
    }

    fn left(filter: &FilterWorld) -> String {
        let mut nf = filter.open();
        let mut all = nf.save_sets().unwrap();
        for version in [IpVersion::V4, IpVersion::V6] {
            for variant in [Variant::Legacy, Variant::Nft] {
                all.push_str(&nf.probe(variant, version).unwrap().unwrap_or_default());
            }
            all.push_str(&nf.nft_list(version, "brindle").unwrap().unwrap_or_default());
        }
        all
    }

    #[test]
    fn all_of_ours_goes_and_pods_and_others_keep_theirs() {
        let (filter, world) = node();
        let writes = filter.writes();
        let said = wish(true, true).run_on(&mut filter.open(), &mut world.other());
        assert_eq!((filter.writes(), world.routes().len(), &said.failed), (writes, 5, &vec![]), "{said:?}");
        assert_eq!(said.done.len(), 7, "{said:?}");
        assert!(said.done.iter().all(|l| l.ends_with(": would be removed")), "{said:?}");

        let said = wish(false, false).run_on(&mut filter.open(), &mut world.other());
        assert_eq!(said.failed, Vec::<String>::new());
        let text = left(&filter);
        assert!(!text.contains("brindle"), "{text}");
        assert!(text.contains("theirs -j ACCEPT") && text.contains("create theirs"), "{text}");
        assert!(world.link("tunl0").is_none() && world.link("cali1").is_some());
        assert_eq!(world.routes().len(), 5, "packets between nodes need them");
        assert!(said.done.last().is_some_and(|l| l.starts_with("2 routes to other nodes")), "{said:?}");

        let said = wish(true, false).run_on(&mut filter.open(), &mut world.other());
        assert_eq!((said.done.len(), said.failed.len(), world.routes().len()), (1, 0, 3), "{said:?}");
        let again = wish(true, false).run_on(&mut filter.open(), &mut world.other());
        assert_eq!(again, Removed::default());
    }

    #[test]
    fn what_fails_is_named_and_the_rest_goes() {
        let (filter, world) = node();
        filter.fail_next(NfCall::Nft);
        let said = wish(false, false).run_on(&mut filter.open(), &mut world.other());
        assert_eq!(said.failed.len(), 1, "{said:?}");
        assert!(said.failed[0].starts_with("nftables: table ip brindle: cannot be removed: "), "{said:?}");
        assert!(!left(&filter).contains("brindle-") && world.link("tunl0").is_none());
        let again = wish(false, false).run_on(&mut filter.open(), &mut world.other());
        assert_eq!(again.failed, Vec::<String>::new());
        assert!(!left(&filter).contains("brindle"));
    }
}
