//! Ranges of other IPAM plugins that lie inside IP pools. Each of the two gives addresses without asking the other, so one
//! may come to be given twice; an ADD that meets it is refused, and here it is told before: in the log once, and in a file
//! below the state folder that `brindlectl ipam check` holds against the pools. It is taken back when the network comes with
//! other ranges, when no ADD has met it for a day, and when the agent starts.

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use brindle_cni::proto::Attachment;
use brindle_ipam::View;
use brindle_kernel::files;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::{now, service::Service};

/// Name below the state folder.
const FILE: &str = "ipam-foreign.json";
/// Ranges remembered; whoever has more knows by then.
const MANY: usize = 100;
/// How long one counts that no ADD meets any more.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How much later one must be met to be written down again.
const RENEWED: Duration = Duration::from_secs(3600);

/// What another IPAM plugin has to do with an ADD.
pub(super) struct Foreign {
    /// The addresses it gave.
    pub(super) given: Vec<IpNet>,
    /// What it gives them of; empty where it does not say.
    pub(super) ranges: Vec<(IpAddr, IpAddr)>,
}

/// First and last address, and the network that is configured so.
type Range = (IpAddr, IpAddr, String);

/// When an ADD met it last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    at: Instant,
    /// The same for people.
    time: String,
}

/// What was told and still counts: pools with the ranges inside them.
#[derive(Default)]
struct Told(BTreeMap<(String, Range), Seen>);

/// What an ADD brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    /// Not known until now: to be told.
    New,
    /// Known, and seen again after a long time: to be written down.
    Renewed,
    None,
}

impl Told {
    fn meet(&mut self, pool: &str, range: &Range, seen: &Seen) -> News {
        let key = (pool.to_owned(), range.clone());
        let full = self.0.len() >= MANY;
        match self.0.get_mut(&key) {
            Some(known) if seen.at.saturating_duration_since(known.at) >= RENEWED => {
                *known = seen.clone();
                News::Renewed
            }
            Some(_) => News::None,
            None if full => News::None,
            None => {
                self.0.insert(key, seen.clone());
                News::New
            }
        }
    }

    /// Forgets what no ADD has met for long. Says whether there was any.
    fn age(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0.retain(|_, seen| now.saturating_duration_since(seen.at) < KEPT);
        self.0.len() < before
    }

    /// The network is configured with these ranges now: others it had are no more. Single addresses are a pod's own, and say
    /// nothing of others. Says whether any went.
    fn configured(&mut self, network: &str, ranges: &[(IpAddr, IpAddr)]) -> bool {
        if ranges.is_empty() {
            return false;
        }
        let before = self.0.len();
        self.0.retain(|(_, (first, last, its)), _| {
            its != network || first == last || ranges.contains(&(*first, *last))
        });
        self.0.len() < before
    }

    /// For `ipam check`; `None`: there is nothing to tell.
    fn report(&self) -> Option<Value> {
        let mut ranges: BTreeMap<&Range, &str> = BTreeMap::new();
        for ((_, range), seen) in &self.0 {
            // Of several pools the latest; such times sort as text.
            let time = ranges.entry(range).or_default();
            *time = (*time).max(&seen.time);
        }
        let ranges = ranges.into_iter().map(|((first, last, network), seen)| {
            json!({"first": first, "last": last, "network": network, "seen": seen})
        });
        let ranges: Vec<Value> = ranges.collect();
        (!ranges.is_empty()).then(|| json!({ "ranges": ranges }))
    }
}

/// What was told, with its file. The lock is held while the file is written, so that the last state is the one that stays.
pub(super) struct Overlaps {
    file: PathBuf,
    told: Mutex<Told>,
}

impl Overlaps {
    /// Begins anew: what a former agent met may be mended since, and is met again if it is not.
    pub(super) fn new(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        if let Err(e) = remove(&file) {
            tracing::debug!("{FILE}: {e}");
        }
        Self { file, told: Mutex::default() }
    }

    async fn write(&self, told: &Told) {
        let (file, report) = (self.file.clone(), told.report());
        let write = move || {
            let Some(report) = report else { return remove(&file) };
            files::replace(&file, report.to_string().as_bytes(), 0o644, false)
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("{FILE}: {e}"),
            Err(e) => tracing::debug!("{FILE}: {e}"),
        }
    }
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

impl Service {
    /// Tells of ranges inside pools. Nothing fails by it.
    pub(super) async fn tell_overlaps(&self, a: &Attachment, other: &Foreign) {
        let single = || other.given.iter().map(|n| (n.addr(), n.addr())).collect();
        let ranges: Vec<(IpAddr, IpAddr)> =
            if other.ranges.is_empty() { single() } else { other.ranges.clone() };
        let Ok(view) = View::load(&*self.store, &self.node).await else { return };
        let seen = Seen { at: Instant::now(), time: now().rfc3339() };
        let mut told = self.overlaps.told.lock().await;
        let mut changed = told.configured(&a.network, &other.ranges);
        for (first, last) in ranges {
            for pool in view.giving_of(first, last) {
                let news = told.meet(&pool.name, &(first, last, a.network.clone()), &seen);
                changed |= news != News::None;
                if news != News::New {
                    continue;
                }
                let of = if first == last { format!("{first}") } else { format!("{first} to {last}") };
                tracing::warn!(
                    pool = %pool.name, cidr = %pool.spec.cidr, network = %a.network,
                    "another IPAM plugin gives addresses of {of}, which are of IP pool {} ({}) too: one may be given twice; \
                     reserve them (brindlectl ipam reserve), disable the pool, or take them out of the plugin's configuration",
                    pool.name, pool.spec.cidr
                );
            }
        }
        if changed {
            self.overlaps.write(&told).await;
        }
    }

    /// Takes back what was told of ranges that no pod has been given of for long.
    pub(super) async fn age_overlaps(&self) {
        let mut told = self.overlaps.told.lock().await;
        if told.age(Instant::now()) {
            self.overlaps.write(&told).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str, network: &str) -> Range {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (first.parse().unwrap(), last.parse().unwrap(), network.into())
    }

    fn seen(at: Instant) -> Seen {
        Seen { at, time: "2026-11-23T02:23:27Z".into() }
    }

    #[test]
    fn what_no_pod_meets_for_long_is_forgotten_and_what_is_met_again_stays() {
        let begin = Instant::now();
        let (old, used) = (range("10.1.0.0-10.1.0.9", "net"), range("10.1.0.20-10.1.0.29", "net"));
        let mut told = Told::default();
        for r in [&old, &used] {
            assert_eq!(told.meet("p", r, &seen(begin)), News::New);
            assert_eq!(told.meet("p", r, &seen(begin)), News::None, "told once");
        }
        assert!(!told.age(begin + KEPT / 2));
        assert_eq!(told.meet("p", &used, &seen(begin + KEPT / 2)), News::Renewed);
        assert!(told.age(begin + KEPT));
        let left = told.report().unwrap();
        assert_eq!(left["ranges"].as_array().map(Vec::len), Some(1));
        assert_eq!(left["ranges"][0]["first"], "10.1.0.20");
        assert!(told.age(begin + 2 * KEPT));
        assert_eq!(told.report(), None);
        assert_eq!(told.meet("p", &old, &seen(begin + 2 * KEPT)), News::New, "and told anew");
    }

    #[test]
    fn as_many_as_are_remembered_make_room_when_they_are_old() {
        let begin = Instant::now();
        let mut told = Told::default();
        for n in 0..MANY {
            assert_eq!(told.meet(&format!("p{n}"), &range("10.1.0.1", "net"), &seen(begin)), News::New);
        }
        let more = range("10.1.0.2", "net");
        assert_eq!(told.meet("p", &more, &seen(begin)), News::None);
        assert!(told.age(begin + KEPT));
        assert_eq!(told.meet("p", &more, &seen(begin + KEPT)), News::New);
    }

    #[test]
    fn another_configuration_of_a_network_replaces_its_ranges_and_no_others() {
        let begin = Instant::now();
        let mut told = Told::default();
        for r in [
            range("10.1.0.0-10.1.0.9", "net"),
            range("10.1.0.20-10.1.0.29", "net"),
            range("10.1.0.50", "net"),
            range("10.1.0.0-10.1.0.9", "other"),
        ] {
            told.meet("p", &r, &seen(begin));
        }
        let (first, last, _) = range("10.1.0.20-10.1.0.29", "net");
        assert!(!told.configured("net", &[]));
        assert!(told.configured("net", &[(first, last)]));
        assert!(!told.configured("net", &[(first, last)]));
        assert_eq!(told.0.len(), 3);
    }
}
