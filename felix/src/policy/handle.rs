//! What others see of the policy thread: what it is told and asked, what it reports, and the handle to both.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use brindle_config_core::{Key, Kind, status::PolicyStatus, store::SyncEvent};
use brindle_felix_core::{
    policy::active::{EndpointId, PolicyDelta},
    rules::ir::Family,
};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};

use super::driver::Counters;

/// What the thread is told.
#[derive(Debug)]
pub enum PolicyInput {
    Store(Vec<SyncEvent>),
    /// Beside the store: for programs that calculate elsewhere.
    Deltas(Vec<PolicyDelta>),
    /// Look at the kernel again now.
    Check,
    Ask(oneshot::Sender<PolicyReport>),
    /// Answered when everything told before is in the report.
    Heard(oneshot::Sender<()>),
    /// Answered with what the kernel itself lacks of a workload's rules and sets; it is written again right after.
    Verify(EndpointId, oneshot::Sender<Verified>),
    /// Answered when new flows of a workload nobody has told of are denied in the kernel, or with why they are not.
    Guard(oneshot::Sender<Result<(), String>>),
}

/// What the kernel lacks, a line each; the error says why that is not known.
pub type Verified = Result<Vec<String>, String>;

/// What policy says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyReport {
    /// The whole desired state was in the kernel at least once.
    pub in_sync: bool,
    /// The datastore has told of everything it had when this began.
    pub listed: bool,
    /// Everything heard of so far is in the kernel.
    pub settled: bool,
    /// `iptables-legacy`, `iptables-nft`, `nftables`; empty until chosen.
    pub back_end: &'static str,
    /// Endpoints whose policy is in the kernel, and the addresses it was written for.
    pub ready: Arc<BTreeMap<EndpointId, BTreeSet<IpNet>>>,
    /// Why nothing can be written, when several attempts in a row have failed.
    pub stuck: Option<String>,
    /// What cannot be done as asked, with what to do.
    pub problems: Vec<String>,
    /// Resources that cannot be enforced as written.
    pub resources: Vec<String>,
    pub policies: usize,
    pub sets: usize,
    /// Whatever the store said up to this revision is in force.
    pub revision: u64,
    pub counters: Counters,
}

impl PolicyReport {
    /// Whether a workload's policy is in the kernel.
    pub fn is_ready(&self, key: &Key) -> bool {
        endpoint_id(key).is_none_or(|id| self.ready.contains_key(&id))
    }

    /// What a workload's policy waits for.
    fn what_is_missing(&self, id: &EndpointId, addresses: &BTreeSet<IpNet>) -> String {
        let words = |all: &BTreeSet<IpNet>| {
            let all: Vec<String> = all.iter().map(|n| n.addr().to_string()).collect();
            if all.is_empty() { "no address".to_owned() } else { all.join(", ") }
        };
        match self.ready.get(id) {
            _ if !self.problems.is_empty() => self.problems.join("; "),
            _ if !self.listed => {
                "no policy is written before the datastore has told all resources".to_owned()
            }
            _ if !self.settled => "changes are still being written to the kernel; it may be busy".to_owned(),
            None => "the datastore has not told of this endpoint yet".to_owned(),
            Some(there) if there != addresses => {
                format!("the datastore tells of it with {} instead of {}", words(there), words(addresses))
            }
            Some(_) => "it was written just now".to_owned(),
        }
    }

    /// What keeps the thread from taking anything in.
    fn what_is_under_way(&self) -> String {
        let busy = "an earlier change is still being written to the kernel; it may be busy";
        match self.problems.as_slice() {
            [] => busy.to_owned(),
            problems => format!("{busy}; {}", problems.join("; ")),
        }
    }

    /// For the admin socket.
    pub fn status(&self) -> PolicyStatus {
        let c = &self.counters;
        PolicyStatus {
            in_sync: self.in_sync,
            back_end: self.back_end.to_owned(),
            policies: self.policies,
            sets: self.sets,
            revision: self.revision,
            table_writes: c.table_writes,
            set_writes: c.set_writes,
            nft_writes: c.nft_writes,
            repairs: c.repairs,
            flows_cut: c.flows_cut,
            problems: self.problems.clone(),
            resources: self.resources.clone(),
        }
    }
}

/// How to start.
#[derive(Clone, Debug)]
pub struct PolicySetup {
    pub node: String,
    /// Families to write; those the kernel has when empty.
    pub families: Vec<Family>,
    /// Prefixes of workloads' devices until the resources say; the default when empty.
    pub prefixes: Vec<String>,
    /// What shows that a Calico runs on this node, in words.
    pub calico: fn() -> Option<String>,
}

/// A running policy thread. Dropping every handle ends it and leaves the kernel as it is.
#[derive(Clone, Debug)]
pub struct PolicyHandle {
    pub(super) inputs: mpsc::Sender<PolicyInput>,
    pub(super) report: watch::Receiver<PolicyReport>,
}

impl PolicyHandle {
    /// Tells the thread something; waits while it is busy. `false`: it is gone.
    pub async fn send(&self, input: PolicyInput) -> bool {
        self.inputs.send(input).await.is_ok()
    }

    /// The latest report.
    pub fn report(&self) -> PolicyReport {
        self.report.borrow().clone()
    }

    /// Follows the report.
    pub fn watch(&self) -> watch::Receiver<PolicyReport> {
        self.report.clone()
    }

    /// Waits until a workload's policy is in the kernel with these addresses as its own (a pod made anew under its old
    /// name has others); the error says what stands in the way.
    pub async fn wait_ready(&self, key: &Key, addresses: &[IpNet], limit: Duration) -> Result<(), String> {
        let Some(id) = endpoint_id(key) else { return Ok(()) };
        let mine: BTreeSet<IpNet> = addresses.iter().copied().collect();
        let mut report = self.report.clone();
        let heard = AtomicBool::new(false);
        let wait = async {
            // Whatever the thread was told before this call is taken in first: its former rules are no answer.
            let (tx, rx) = oneshot::channel();
            if !self.send(PolicyInput::Heard(tx)).await || rx.await.is_err() {
                return Err(());
            }
            heard.store(true, Ordering::Relaxed);
            report.wait_for(|r| r.settled && r.ready.get(&id) == Some(&mine)).await.map(drop).map_err(drop)
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err("the policy thread is not running; see the agent's log".into()),
            Err(_) => {
                let report = self.report.borrow();
                let why = match heard.load(Ordering::Relaxed) {
                    true => report.what_is_missing(&id, &mine),
                    false => report.what_is_under_way(),
                };
                Err(format!(
                    "the policy of {key} is not in the kernel after {:.0} s: {why}",
                    limit.as_secs_f64()
                ))
            }
        }
    }

    /// Reads from the kernel what it lacks of a workload's rules and sets, a line each.
    pub async fn verify(&self, key: &Key, limit: Duration) -> Verified {
        let Some(id) = endpoint_id(key) else { return Ok(Vec::new()) };
        self.answered(limit, |tx| PolicyInput::Verify(id, tx)).await?
    }

    /// Makes sure that new flows of a workload nobody has told of are denied in the kernel.
    pub async fn guard(&self, limit: Duration) -> Result<(), String> {
        self.answered(limit, PolicyInput::Guard).await?
    }

    async fn answered<T>(
        &self,
        limit: Duration,
        ask: impl FnOnce(oneshot::Sender<T>) -> PolicyInput,
    ) -> Result<T, String> {
        let (tx, rx) = oneshot::channel();
        let answer = async { if self.send(ask(tx)).await { rx.await.ok() } else { None } };
        match tokio::time::timeout(limit, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the policy thread is not running; see the agent's log".into()),
            Err(_) => Err(format!("the policy thread did not answer within {limit:?}; it may be busy")),
        }
    }

    /// Completes when the thread has ended.
    pub async fn ended(&self) {
        self.inputs.closed().await;
    }
}

/// A workload's identity in the calculation.
fn endpoint_id(key: &Key) -> Option<EndpointId> {
    (key.kind == Kind::WorkloadEndpoint)
        .then(|| EndpointId::Workload { namespace: key.namespace.clone(), name: key.name.clone() })
}

#[cfg(test)]
mod tests {
    use brindle_config_core::Kind;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_a_thread_that_writes_is_told_so() {
        let (inputs, _kept) = mpsc::channel(1);
        let known = PolicyReport { in_sync: true, listed: true, settled: true, ..PolicyReport::default() };
        let (_tx, report) = watch::channel(known);
        let handle = PolicyHandle { inputs, report };
        let key = Key::new(Kind::WorkloadEndpoint, Some("red"), "a");
        let said = handle.wait_ready(&key, &[], Duration::from_millis(1)).await.unwrap_err();
        assert!(said.contains("an earlier change is still being written"), "{said}");
    }

    #[test]
    fn what_a_workload_waits_for_is_named() {
        let id = EndpointId::Workload { namespace: "a".into(), name: "b".into() };
        let nets = |text: &str| BTreeSet::from([text.parse::<IpNet>().unwrap()]);
        let mine = nets("10.0.0.2/32");
        let mut r = PolicyReport::default();
        let has = |r: &PolicyReport, text: &str| {
            let said = r.what_is_missing(&id, &mine);
            assert!(said.contains(text), "{said}");
        };
        has(&r, "before the datastore has told all resources");
        r.listed = true;
        has(&r, "being written to the kernel");
        r.settled = true;
        has(&r, "has not told of this endpoint");
        r.ready = Arc::new([(id.clone(), nets("10.0.0.1/32"))].into());
        has(&r, "with 10.0.0.1 instead of 10.0.0.2");
        r.problems = vec!["set iptablesBackend".into()];
        has(&r, "set iptablesBackend");
    }
}
