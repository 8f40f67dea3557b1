//! The tunnel device: the kernel's ipip where there is ipip, else the brindle-ipip process.

use std::collections::{BTreeMap, BTreeSet};

use brindle_felix_core::desire::Tunnel;
use brindle_kernel::{
    api::Kernel,
    netlink::{Addr, Link, NetlinkError},
};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    engine::{CarrierPolicy, Settings},
    filter::Filter,
};

/// Name of the device in both cases: tools and firewalls written for Calico look for it.
const DEVICE: &str = "tunl0";
/// The carrier's device beside a kernel's own tunl0, which cannot be removed while its module is loaded.
const BESIDE: &str = "brtun0";
/// Kinds of devices as the kernel names them.
const IPIP: &str = "ipip";
const TUN: &str = "tun";

/// A carrier process, as felix needs it.
pub(crate) trait Carrier: Send {
    /// Makes it run with this configuration; adopts one that runs already.
    fn ensure(&mut self, device: &str, want: &Tunnel) -> Result<(), String>;
    /// Whether it still runs.
    fn alive(&mut self) -> bool;
    /// Packets refused because of their outer source.
    fn refused(&mut self) -> Option<u64>;
    /// Ends it and removes its device.
    fn stop(&mut self);
}

/// Which way packets are encapsulated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Kernel,
    Carrier,
}

/// Keeps the device as wanted.
pub(crate) struct TunnelManager {
    policy: CarrierPolicy,
    kind: Option<(Kind, String)>,
    carrier: Box<dyn Carrier>,
    told: Option<Tunnel>,
    /// Why there is no device, or what is wrong with it.
    none: String,
    trouble: Option<String>,
    /// Ask the carrier whether it still runs.
    check: bool,
    filter: Box<dyn Filter>,
    /// What the filter was last told, whether that worked or not.
    filtered: Option<BTreeSet<Ipv4Net>>,
    /// Look whether the filter is as it was left.
    look: bool,
    unfiltered: Option<String>,
}

impl TunnelManager {
    pub(crate) fn new(settings: &Settings, carrier: Box<dyn Carrier>, filter: Box<dyn Filter>) -> Self {
        Self {
            policy: settings.carrier,
            kind: None,
            carrier,
            told: None,
            none: "the datastore has not been read yet".into(),
            trouble: None,
            check: true,
            filter,
            filtered: None,
            look: true,
            unfiltered: None,
        }
    }

    /// `kernel`, `carrier` or `none`, and why.
    pub(crate) fn describe(&self) -> (&'static str, String) {
        let (device, why) = match &self.kind {
            Some((Kind::Kernel, why)) => ("kernel", why),
            Some((Kind::Carrier, why)) => ("carrier", why),
            None => ("none", &self.none),
        };
        match (&self.trouble, &self.kind) {
            (None, _) => (device, why.clone()),
            (Some(trouble), None) => (device, format!("it cannot be set up: {trouble}")),
            (Some(trouble), Some(_)) => (device, format!("{why}; but: {trouble}")),
        }
    }

    /// Packets refused because of their outer source; `read`: as of now.
    pub(crate) fn refused(&mut self, read: bool) -> u64 {
        match self.kind {
            Some((Kind::Carrier, _)) => self.carrier.refused().unwrap_or(0),
            Some((Kind::Kernel, _)) => self.filter.dropped(read),
            None => 0,
        }
    }

    /// What the filter of kernel ipip lacks.
    pub(crate) fn unfiltered(&self) -> Option<String> {
        self.unfiltered.as_ref().map(|why| {
            format!(
                "packets in IPIP from unknown nodes are not dropped: {why}; install iptables and ipset, or use \
                 --ipip-carrier user, which needs neither"
            )
        })
    }

    /// Brings the filter of kernel ipip to what is wanted, once the device and the routes are there: it may take a
    /// while, and nothing waits for it. A filter an earlier agent left goes where it is not wanted.
    pub(crate) fn guard(&mut self, want: Option<&Tunnel>, links: &BTreeMap<u32, Link>) {
        let look = std::mem::take(&mut self.look);
        let kernels = links.values().any(|l| l.name == DEVICE && l.kind.as_deref() == Some(IPIP));
        let done = match (&self.kind, want) {
            (Some((Kind::Kernel, _)), Some(want)) => {
                if !look && self.filtered.as_ref() == Some(&want.sources) {
                    return;
                }
                self.filtered = Some(want.sources.clone());
                self.filter.ensure(&want.sources, look)
            }
            _ if self.filtered.take().is_some() || (look && kernels) => self.filter.remove(),
            _ => Ok(()),
        };
        let now = done.err();
        match (&self.unfiltered, &now) {
            (old, Some(why)) if old.as_ref() != Some(why) => {
                tracing::warn!(cause = %why, "no filter on the tunnel")
            }
            (Some(_), None) => tracing::info!("the tunnel is filtered"),
            _ => {}
        }
        self.unfiltered = now.filter(|_| self.filtered.is_some());
    }

    /// Brings the device to what is wanted, or away if none is (then with the reason). True if something was written
    /// (links must be read again).
    pub(crate) fn reconcile(
        &mut self,
        want: Result<&Tunnel, &str>,
        kernel: &mut dyn Kernel,
        links: &BTreeMap<u32, Link>,
        addrs: &BTreeSet<Addr>,
    ) -> Result<bool, String> {
        let done = self.bring(want, kernel, links, addrs);
        self.trouble = done.as_ref().err().cloned();
        done
    }

    fn bring(
        &mut self,
        want: Result<&Tunnel, &str>,
        kernel: &mut dyn Kernel,
        links: &BTreeMap<u32, Link>,
        addrs: &BTreeSet<Addr>,
    ) -> Result<bool, String> {
        let device = self.device(links);
        let none_at_all = want.is_err() || self.policy == CarrierPolicy::Kernel;
        if let Some(left) = carriers(links).find(|l| none_at_all || l.name != device) {
            self.end_carrier(left, kernel)?;
            if let Err(why) = want {
                self.none = why.to_owned();
            }
            return Ok(true);
        }
        let want = match want {
            Ok(want) => want,
            Err(why) => {
                self.kind = None;
                self.none = why.to_owned();
                return Ok(false);
            }
        };
        if self.kind.is_none() {
            let (kind, why) = self.choose(kernel, links)?;
            tracing::info!(device, backend = ?kind, cause = %why, "encapsulation chosen");
            self.kind = Some((kind, why));
        }
        let mut wrote = false;
        if let Some((Kind::Carrier, _)) = self.kind {
            let dead = !links.values().any(|l| l.name == device) || (self.check && !self.carrier.alive());
            self.check = false;
            if self.told.as_ref() != Some(want) || dead {
                self.carrier.ensure(device, want)?;
                wrote |= self.told.is_none() || dead;
                self.told = Some(want.clone());
            }
        }
        Ok(wrote | configure(device, want, kernel, links, addrs)?)
    }

    /// The device that packets for other segments take, or would.
    pub(crate) fn device(&self, links: &BTreeMap<u32, Link>) -> &'static str {
        let kernels = links.values().any(|l| l.name == DEVICE && l.kind.as_deref() == Some(IPIP));
        if self.policy == CarrierPolicy::User && kernels { BESIDE } else { DEVICE }
    }

    /// A carrier that is not wanted, perhaps one an earlier agent started.
    fn end_carrier(&mut self, device: &Link, kernel: &mut dyn Kernel) -> Result<(), String> {
        tracing::info!(
            device = device.name,
            old = "carrier",
            new = "none",
            cause = "not wanted",
            "encapsulation"
        );
        self.carrier.stop();
        (self.told, self.kind) = (None, None);
        // It takes its device along; one that is dead cannot.
        match kernel.del_link(device.index) {
            Ok(()) => Ok(()),
            Err(e) if e.is_not_found() => Ok(()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Looks at carrier and filter again even if nothing changed: the one may have died, the other been removed.
    pub(crate) fn recheck(&mut self) {
        self.check = true;
        self.look = true;
    }

    fn choose(&self, kernel: &mut dyn Kernel, links: &BTreeMap<u32, Link>) -> Result<(Kind, String), String> {
        let existing = links.values().find(|l| l.name == DEVICE);
        match existing.map(|l| l.kind.as_deref().unwrap_or("unnamed")) {
            Some(IPIP) if self.policy != CarrierPolicy::User => {
                return Ok((Kind::Kernel, "the kernel has ipip".into()));
            }
            Some(TUN) if self.policy == CarrierPolicy::Auto => {
                return Ok((Kind::Carrier, "a running brindle-ipip was found".into()));
            }
            Some(IPIP | TUN) | None => {}
            Some(other) => {
                return Err(format!(
                    "there is a device {DEVICE} of kind {other}, not ours: remove or rename it"
                ));
            }
        }
        if self.policy == CarrierPolicy::User {
            return Ok((Kind::Carrier, "asked for with --ipip-carrier user".into()));
        }
        match kernel.add_link(DEVICE, IPIP, None) {
            Ok(()) => Ok((Kind::Kernel, "the kernel has ipip".into())),
            // Loading the module makes tunl0 in every namespace.
            Err(e) if e.is_exists() => Ok((Kind::Kernel, "the kernel has ipip".into())),
            Err(e) if e.is_unsupported() && self.policy == CarrierPolicy::Auto => {
                Ok((Kind::Carrier, "the kernel has no ipip".into()))
            }
            Err(e) => Err(format!("{e}; with --ipip-carrier user the brindle-ipip process is used instead")),
        }
    }
}

/// Whether a carrier made this device.
pub(crate) fn is_carriers(link: &Link) -> bool {
    matches!(link.name.as_str(), DEVICE | BESIDE) && link.kind.as_deref() == Some(TUN)
}

/// Devices that carriers made here.
fn carriers(links: &BTreeMap<u32, Link>) -> impl Iterator<Item = &Link> {
    links.values().filter(|l| is_carriers(l))
}

/// Up, MTU, one address.
fn configure(
    device: &str,
    want: &Tunnel,
    kernel: &mut dyn Kernel,
    links: &BTreeMap<u32, Link>,
    addrs: &BTreeSet<Addr>,
) -> Result<bool, String> {
    let Some(link) = links.values().find(|l| l.name == device) else {
        // Just made: the caller reads the links again and comes back.
        return Ok(true);
    };
    let wanted = want.address.map(|a| IpNet::V4(Ipv4Net::from(a)));
    let present: Vec<IpNet> =
        addrs.iter().filter(|a| a.link == link.index && a.net.addr().is_ipv4()).map(|a| a.net).collect();
    let write = |kernel: &mut dyn Kernel| -> Result<bool, NetlinkError> {
        let mut wrote = false;
        if link.mtu != want.mtu {
            kernel.set_link_mtu(link.index, want.mtu)?;
            wrote = true;
        }
        if !link.up {
            kernel.set_link_up(link.index, true)?;
            wrote = true;
        }
        // The new address before the old one goes: with its last address a device loses its routes.
        if let Some(net) = wanted.filter(|n| !present.contains(n)) {
            kernel.add_addr(&Addr::new(link.index, net))?;
            wrote = true;
        }
        for extra in present.iter().filter(|n| wanted.is_some() && Some(**n) != wanted) {
            kernel.del_addr(link.index, *extra)?;
            wrote = true;
        }
        Ok(wrote)
    };
    write(kernel).map_err(|e| e.to_string())
}
