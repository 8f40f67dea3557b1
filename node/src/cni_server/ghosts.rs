//! Endpoints of containers that are gone: a power cut may undo what an answered DEL has written, and the runtime has
//! nothing left to ask a second DEL for. The endpoint speaks for its address then, so that the collector of addresses
//! ([`super::leaks`]) leaves both alone. Here the endpoint itself is judged, by the two witnesses that are not the store:
//! the runtime does not know the attachment, and the kernel has neither its device nor a route to one of its addresses.
//! Either of them unheard speaks for it. What both do not know for the grace period goes as after a DEL.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use brindle_config_core::{
    Kind,
    store::{Entry, decode},
    time::Now,
    workload::WorkloadEndpointSpec,
};

use super::{
    endpoint::NETWORK,
    leaks::{LeakArgs, Mode, handles_of},
    now,
    refused::Refused,
    service::Service,
};

/// Since when each suspect is one: by network, container and interface.
#[derive(Debug, Default)]
pub(super) struct Ghosts(BTreeMap<(String, String, String), Now>);

/// What the witnesses beside the store know.
pub(super) struct Known {
    pub(super) attachments: BTreeSet<String>,
    pub(super) kernel: BTreeSet<IpAddr>,
}

impl Known {
    fn speaks_for(&self, network: &str, spec: &WorkloadEndpointSpec) -> bool {
        handles_of(network, &spec.container_id, &spec.endpoint).any(|h| self.attachments.contains(&h))
            || spec.ip_networks.iter().any(|n| self.kernel.contains(&n.addr()))
    }
}

impl Ghosts {
    /// Notes who has no witness; gives those who had none for `grace` seconds.
    fn look(
        &mut self,
        endpoints: Vec<(String, WorkloadEndpointSpec)>,
        known: &Known,
        grace: u64,
        now: Now,
    ) -> Vec<(String, WorkloadEndpointSpec)> {
        let mut suspects = BTreeMap::new();
        let mut due = Vec::new();
        for (network, spec) in endpoints.into_iter().filter(|(n, s)| !known.speaks_for(n, s)) {
            let id = (network.clone(), spec.container_id.clone(), spec.endpoint.clone());
            let since = self.0.get(&id).copied().unwrap_or(now);
            suspects.insert(id, since);
            if now.secs_since(since) >= grace {
                due.push((network, spec));
            }
        }
        self.0 = suspects;
        due
    }
}

impl Service {
    /// One look. `known`: what was heard for it, `None` when a witness could not be.
    pub(super) async fn look_for_ghosts(&self, known: Option<Known>, args: &LeakArgs) -> Result<(), Refused> {
        let Some(known) = known else {
            *self.ghosts() = Ghosts::default();
            return Ok(());
        };
        let mut endpoints = Vec::new();
        let mut each = |entry: &Entry| {
            if let Ok(e) = decode::<WorkloadEndpointSpec>(entry) {
                endpoints.extend(self.of_ours(&e.resource.metadata.annotations, e.resource.spec));
            }
        };
        let kinds = [Kind::WorkloadEndpoint];
        if !self.store.visit_followed(&kinds, &mut |entry| each(&entry)) {
            self.store.list(&kinds).await?.entries.iter().for_each(each);
        }
        let due = self.ghosts().look(endpoints, &known, args.ipam_gc_grace, now());
        for (network, spec) in due {
            let container = &spec.container_id;
            if args.ipam_gc == Mode::DryRun {
                tracing::info!(%container, %network, "endpoint of a container that is gone; not collected: dry run");
                continue;
            }
            if let Err(refused) = self.collect_ghost(&network, &spec, args).await {
                tracing::warn!(%container, %network, "endpoint of a container that is gone stays for now: {}", refused.msg);
            }
        }
        Ok(())
    }

    /// The network, if the endpoint is one that a plugin of this node registered.
    fn of_ours(
        &self,
        annotations: &BTreeMap<String, String>,
        spec: WorkloadEndpointSpec,
    ) -> Option<(String, WorkloadEndpointSpec)> {
        let network = annotations.get(NETWORK)?.clone();
        (spec.node == self.node && !spec.container_id.is_empty()).then_some((network, spec))
    }

    /// Asks the witnesses once more, with calls about the container held off.
    async fn collect_ghost(
        &self,
        network: &str,
        spec: &WorkloadEndpointSpec,
        args: &LeakArgs,
    ) -> Result<(), Refused> {
        let a = super::collect::of_endpoint(network, spec);
        let _turn = self.turn(&a).await;
        let gone = self.known(&args.cni_cache).await.is_some_and(|k| !k.speaks_for(network, spec));
        if !gone || super::device::exists(spec.interface_name.clone()).await {
            return Ok(());
        }
        let stored = self.own_endpoints().await?;
        let same = |s: &WorkloadEndpointSpec| {
            s.node == spec.node && s.container_id == spec.container_id && s.ip_networks == spec.ip_networks
        };
        if !stored.iter().any(|e| same(&e.resource.spec)) {
            return Ok(());
        }
        tracing::info!(
            container = %a.container_id,
            addresses = ?spec.ip_networks,
            cause = "neither the runtime nor the kernel knows it",
            "endpoint of a container that is gone collected"
        );
        let handles: Vec<String> = std::iter::once(a.handle()).chain(a.former_handle()).collect();
        self.begin_collecting(&handles).await;
        self.forget(&a, false, None).await?;
        self.end_collecting(&handles).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(container: &str, address: &str) -> (String, WorkloadEndpointSpec) {
        let spec = WorkloadEndpointSpec {
            container_id: container.into(),
            endpoint: "eth0".into(),
            ip_networks: vec![address.parse().unwrap()],
            ..WorkloadEndpointSpec::default()
        };
        ("net".into(), spec)
    }

    #[test]
    fn only_whom_nobody_knew_all_the_time_is_due() {
        let all =
            || vec![endpoint("a", "10.0.0.1/32"), endpoint("b", "10.0.0.2/32"), endpoint("c", "10.0.0.3/32")];
        let mut known =
            Known { attachments: ["net.a".to_owned()].into(), kernel: ["10.0.0.2".parse().unwrap()].into() };
        let at = Now::from_secs;
        let mut ghosts = Ghosts::default();
        assert_eq!(ghosts.look(all(), &known, 60, at(1000)), []);
        assert_eq!(ghosts.look(all(), &known, 60, at(1059)), []);
        // One that was known in between begins anew.
        known.kernel.clear();
        assert_eq!(ghosts.look(all(), &known, 60, at(1060)), [endpoint("c", "10.0.0.3/32")]);
        known.kernel.insert("10.0.0.2".parse().unwrap());
        ghosts.look(all(), &known, 60, at(1100));
        known.kernel.clear();
        assert_eq!(ghosts.look(all(), &known, 60, at(1130)), [endpoint("c", "10.0.0.3/32")]);
        assert_eq!(ghosts.look(vec![], &known, 60, at(1200)), []);
        assert_eq!(ghosts.look(all(), &known, 60, at(1210)), [], "it is another one that has come");
    }
}
