//! kube-proxy in IPVS mode: whether it is, which services IPVS sends on, and what policy cannot do beside it. Looks; changes
//! nothing. The rules for it are felix-core's (`rules::ipvs`).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use brindle_felix_core::rules::{ipvs::Service, layout::Surroundings, model::Model};
use brindle_kernel::netlink::{NetlinkError, Rtnl};

use super::engine::addresses;

/// The device on which kube-proxy keeps the addresses of services in that mode.
pub(super) const DEVICE: &str = "kube-ipvs0";
/// What IPVS does, in the network namespace of the thread.
const TABLE: &str = "/proc/thread-self/net/ip_vs";
/// Least pauses between two readings of it: usually, and when an address of a service came or went. A reading that takes
/// long is followed by one so many times as long.
const USUAL: Duration = Duration::from_secs(1);
const HURRY: Duration = Duration::from_millis(50);
const REST: u32 = 20;
/// How long it is believed which of the back ends are this host itself, while services stay the same.
const OWN: Duration = Duration::from_secs(60);

/// The index of that device, where it is.
pub(super) fn device() -> Result<Option<u32>, NetlinkError> {
    Ok(Rtnl::open()?.link_by_name(DEVICE)?.map(|link| link.index))
}

/// A service and its back ends.
type Virtual = (Service, Vec<IpAddr>);

/// What is known of it. A kernel that does not answer changes nothing.
#[derive(Default)]
pub(super) struct Watch {
    /// `None`: it is not in IPVS mode.
    services: Option<BTreeSet<Service>>,
    table: Vec<Virtual>,
    /// The last reading and how long it took; the next one.
    read: Option<(Instant, Duration)>,
    at: Option<Instant>,
    /// When the back ends were last held against this host's addresses.
    held: Option<Instant>,
    unreadable: Option<String>,
}

impl Watch {
    /// What IPVS sends on to others than this host; `None`: it is not in IPVS mode.
    pub(super) fn services(&self) -> Option<&BTreeSet<Service>> {
        self.services.as_ref()
    }

    /// When to look again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.at
    }

    /// A service may have come or gone.
    pub(super) fn hurry(&mut self) {
        if let (Some(at), Some((last, took))) = (self.at, self.read) {
            self.at = Some(at.min(last + HURRY.max(took * REST)));
        }
    }

    /// Looks, if it is time. Whether something is different.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        match device() {
            Err(e) => {
                tracing::debug!("whether kube-proxy is in IPVS mode is not known: {e}");
                self.at = self.at.map(|at| at.max(now + USUAL));
                return false;
            }
            Ok(None) => {
                let was = std::mem::take(self).services.is_some();
                if was {
                    tracing::info!(old = "IPVS", new = "not IPVS", "mode of kube-proxy");
                }
                return was;
            }
            Ok(Some(_)) => {}
        }
        let new = self.services.is_none();
        if new {
            tracing::info!(old = "not IPVS", new = "IPVS", "mode of kube-proxy");
            self.services = Some(BTreeSet::new());
        }
        if self.at.is_some_and(|at| at > now) {
            return new;
        }
        let changed = self.read();
        let took = now.elapsed();
        self.read = Some((now, took));
        self.at = Some(now + USUAL.max(took * REST));
        new || changed
    }

    fn read(&mut self) -> bool {
        let table = match std::fs::read_to_string(TABLE) {
            Ok(text) => table(&text),
            Err(e) => {
                // Whatever was known stays; what is new is judged as if it was for this host.
                self.unreadable = Some(format!("{TABLE}: {e}"));
                return false;
            }
        };
        self.unreadable = None;
        if table == self.table && self.held.is_some_and(|at| at.elapsed() < OWN) {
            return false;
        }
        let own = match addresses() {
            Ok(own) if own.is_empty() => return false,
            Ok(own) => own,
            Err(e) => {
                self.unreadable = Some(format!("addresses of this host: {e}"));
                return false;
            }
        };
        self.held = Some(Instant::now());
        let elsewhere = |v: &&Virtual| !v.1.iter().any(|a| own.contains_key(a) || a.is_loopback());
        let services = Some(table.iter().filter(elsewhere).map(|v| v.0).collect());
        self.table = table;
        let changed = services != self.services;
        self.services = services;
        changed
    }

    /// What does not hold, with the way out.
    pub(super) fn problems(&self, model: &Model, around: &Surroundings) -> Vec<String> {
        if self.services.is_none() {
            return Vec::new();
        }
        if around.marks.through.is_none() {
            return vec![
                "policy of pods of this node does not hold for what reaches them through a service: kube-proxy is in IPVS \
                 mode, and iptablesMarkMask has no two bits left for it; widen it, for example 0xffff0000"
                    .into(),
            ];
        }
        let unreadable = self.unreadable.as_ref().map(|why| {
            format!(
                "egress policy sees addresses of services, not of pods: kube-proxy is in IPVS mode, and its services \
                 cannot be read: {why}"
            )
        });
        let forward =
            model.endpoints.values().any(|e| e.host.as_ref().is_some_and(|h| !h.forward.is_empty()));
        let forward = forward.then(|| {
            "policy with applyOnForward sees what comes in for a service with the service's address and port, not the \
             pod's: kube-proxy is in IPVS mode"
                .into()
        });
        unreadable.into_iter().chain(forward).collect()
    }
}

/// Reads `/proc/net/ip_vs`: a line for each service, indented ones for its back ends. Services by firewall mark have no
/// address; what cannot be read is left out.
fn table(text: &str) -> Vec<Virtual> {
    let mut out: Vec<Virtual> = Vec::new();
    // Back ends of a service that was left out are nobody's.
    let mut last = false;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if first == "->" {
            if let (true, Some((address, _)), Some((_, ends))) = (last, endpoint(second), out.last_mut()) {
                ends.push(address);
            }
            continue;
        }
        let protocol = match first {
            "TCP" => Some(6),
            "UDP" => Some(17),
            "SCTP" => Some(132),
            _ => None,
        };
        let service = protocol.zip(endpoint(second));
        last = service.is_some();
        if let Some((protocol, (address, port))) = service {
            out.push((Service { address, protocol, port }, Vec::new()));
        }
    }
    out
}

/// `0A60000A:0050` or `[2001:0db8:0000:0000:0000:0000:0000:0001]:0050`.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok()?,
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A60000A:0050 rr  \n  -> C0A8C501:1F90      Masq    1      0          0         \n\
            \x20 -> C0A8C502:1F90      Masq    1      0          0         \n\
            FWM  00000005 wlc \n  -> C0A8C503:0000      Route   1      0          0         \n\
            UDP  [2001:0db8:0000:0000:0000:0000:0000:0001]:0035 rr persistent 10800\n\
            \x20 -> [2001:0db8:0000:0000:0000:0000:0000:0002]:0035      Masq    1      0          0\n\
            SCTP 0A60000B:FFFF rr\nTCP nonsense rr\n  -> C0A8C504:0001 Masq 1 0 0\n";
        let service =
            |address: &str, protocol, port| Service { address: address.parse().unwrap(), protocol, port };
        let addresses = |all: &[&str]| all.iter().map(|a| a.parse().unwrap()).collect::<Vec<IpAddr>>();
        let wanted = [
            (service("10.96.0.10", 6, 80), addresses(&["192.168.197.1", "192.168.197.2"])),
            (service("2001:db8::1", 17, 53), addresses(&["2001:db8::2"])),
            (service("10.96.0.11", 132, 65535), addresses(&[])),
        ];
        assert_eq!(table(text), wanted);
        assert_eq!(table(""), []);
    }
}
