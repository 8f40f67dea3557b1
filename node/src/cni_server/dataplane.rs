//! What the server needs of the part that programs the kernel.

use std::{pin::Pin, sync::Arc, time::Duration};

use brindle_config_core::{
    Key,
    store::{Entry, Store, SyncEvent},
};
use brindle_felix::{
    Handle,
    policy::{PolicyHandle, PolicyInput},
};
use ipnet::IpNet;

use super::device;

/// A boxed answer; the error is a sentence.
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// An endpoint the kernel should know.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    pub(crate) key: Key,
    pub(crate) device: String,
    pub(crate) addresses: Vec<IpNet>,
}

/// Programs the kernel, and says how far it is.
pub(crate) trait Dataplane: Send + Sync {
    /// MTU for new pods, octets, as soon as it is known.
    fn mtu(&self, limit: Duration) -> Answer<'_, u32>;
    /// Prefixes of pod devices (interfacePrefix); new ones get the first.
    fn pod_prefixes(&self) -> Vec<String>;
    /// An endpoint that is about to be written to the store: its policy may be written while its device is made.
    fn announce(&self, _endpoint: Entry) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    /// It will not be written after all.
    fn withdraw(&self, _endpoint: Key) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    /// Whether it has heard from the datastore since the start: what an endpoint may do is known.
    fn knows_cluster(&self) -> bool {
        true
    }
    /// Why no endpoint could be made ready now, if that is known.
    fn stuck(&self) -> Option<String> {
        None
    }
    /// Makes sure that new flows of endpoints nobody has told of are denied in the kernel.
    fn guard(&self, _limit: Duration) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    /// Reads from the kernel what it lacks of the endpoint's policy, a line each.
    fn verify(&self, _endpoint: Key, _limit: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    /// Waits until the endpoint's routes and settings are in the kernel.
    fn ready(&self, endpoint: Expected, limit: Duration) -> Answer<'_, ()>;
}

/// Routes and policy together.
pub(crate) struct Both {
    pub(crate) felix: Handle,
    pub(crate) policy: PolicyHandle,
    pub(crate) store: Arc<dyn Store>,
    /// Its name, as it may be shown.
    pub(crate) datastore: String,
}

/// What policy still waits for from a datastore, and what to do.
fn unlisted(store: &dyn Store, datastore: &str) -> String {
    let mut kinds = store.waits_for(&crate::policy::kinds());
    let more = kinds.len().saturating_sub(5);
    kinds.truncate(5);
    if more > 0 {
        kinds.push(format!("{more} more"));
    }
    let what = if kinds.is_empty() { "its first listing".to_owned() } else { kinds.join(", ") };
    format!(
        "waited for from the datastore {datastore}: {what}; look in the agent's log for \"cannot follow the datastore\""
    )
}

impl Both {
    fn tell(&self, event: SyncEvent) -> Answer<'_, ()> {
        Box::pin(async move {
            let alive = self.policy.send(PolicyInput::Store(vec![event])).await;
            if alive { Ok(()) } else { Err("the policy thread is not running; see the agent's log".into()) }
        })
    }
}

impl Dataplane for Both {
    fn mtu(&self, limit: Duration) -> Answer<'_, u32> {
        Box::pin(async move {
            let mut report = self.felix.watch();
            let known = tokio::time::timeout(limit, report.wait_for(|r| r.pod_mtu != 0)).await;
            match known {
                Ok(Ok(report)) => Ok(report.pod_mtu),
                _ => Err("the agent is starting and does not know the MTU of pods yet".to_owned()),
            }
        })
    }

    fn pod_prefixes(&self) -> Vec<String> {
        self.felix.report().pod_prefixes
    }

    fn announce(&self, endpoint: Entry) -> Answer<'_, ()> {
        self.tell(SyncEvent::Upsert(endpoint))
    }

    fn withdraw(&self, endpoint: Key) -> Answer<'_, ()> {
        self.tell(SyncEvent::Delete(endpoint))
    }

    fn knows_cluster(&self) -> bool {
        // Without the MTU of pods felix has not heard of the pools.
        self.policy.report().in_sync && self.felix.report().pod_mtu != 0
    }

    fn stuck(&self) -> Option<String> {
        self.policy.report().stuck
    }

    fn guard(&self, limit: Duration) -> Answer<'_, ()> {
        Box::pin(self.policy.guard(limit))
    }

    fn verify(&self, endpoint: Key, limit: Duration) -> Answer<'_, Vec<String>> {
        Box::pin(async move { self.policy.verify(&endpoint, limit).await })
    }

    fn ready(&self, endpoint: Expected, limit: Duration) -> Answer<'_, ()> {
        Box::pin(async move {
            let deadline = tokio::time::Instant::now() + limit;
            self.felix.wait_ready(&endpoint.key, limit).await.map_err(|e| e.to_string())?;
            // The pod starts when this answers: its policy is in force by then.
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            self.policy.wait_ready(&endpoint.key, &endpoint.addresses, left).await.map_err(|e| match self
                .policy
                .report()
                .listed
            {
                true => e,
                false => format!("{e}; {}", unlisted(&*self.store, &self.datastore)),
            })?;
            // felix may still mean the endpoint's former device when a pod was made anew under its old name.
            while let Some(missing) = device::missing(&endpoint).await? {
                if tokio::time::Instant::now() >= deadline {
                    return Err(format!("{} is not in the kernel after {limit:?}: {missing}", endpoint.key));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        })
    }
}
