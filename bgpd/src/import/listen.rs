//! The kernel's routes as they change: a thread that reads what rules ask for, again whenever something may have
//! changed, and says what is to be announced. It sleeps until the kernel speaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use brindle_admin::defect::{guarded, words};
use brindle_bgpd_core::speaker::LocalRoute;
use brindle_kernel::netlink::{Event, Group, Monitor, NetlinkError, Route, RouteFilter, Rtnl, Waker};
use ipnet::IpNet;
use tokio::sync::watch;
use tracing::{debug, error, warn};

use super::Imports;

/// What comes together is read together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// The kernel is asked again in any case, as felix does it.
const REFRESH: Duration = Duration::from_secs(90);
/// Pause after an answer that could not be understood.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads routes until dropped.
pub(crate) struct Importer {
    pub(crate) imports: Imports,
    routes: watch::Receiver<Vec<LocalRoute>>,
    stop: Arc<AtomicBool>,
    waker: Waker,
}

impl Importer {
    /// Starts in the network namespace of the calling thread. The first reading is done when this returns, so that a
    /// speaker that starts again withdraws nothing.
    pub(crate) fn start(imports: Imports) -> Result<Self, NetlinkError> {
        let groups = [Group::Links, Group::AddrsV4, Group::AddrsV6, Group::RoutesV4, Group::RoutesV6];
        // Listening begins before the reading, so that nothing falls between.
        let monitor = Monitor::open(&groups)?;
        let (tx, routes) = watch::channel(Vec::new());
        let mut reader = Reader {
            kernel: Rtnl::open()?,
            imports: imports.clone(),
            taken: BTreeSet::new(),
            devices: BTreeSet::new(),
        };
        tx.send_replace(reader.read()?);
        let (stop, waker) = (Arc::new(AtomicBool::new(false)), monitor.waker());
        let thread = std::thread::Builder::new().name("route-import".into());
        let done = Arc::clone(&stop);
        thread.spawn(move || run(reader, monitor, &tx, &done)).map_err(|e| NetlinkError::Socket {
            what: "start the thread that imports routes".into(),
            errno: e.raw_os_error().unwrap_or(0),
        })?;
        Ok(Self { imports, routes, stop, waker })
    }

    /// What is to be announced now.
    pub(crate) fn routes(&mut self) -> Vec<LocalRoute> {
        self.routes.borrow_and_update().clone()
    }

    /// Waits for something else to announce. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.routes.changed().await.is_err() {
            // The thread ended, which only a panic makes it do: the last reading counts.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Importer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.waker.wake();
    }
}

struct Reader {
    kernel: Rtnl,
    imports: Imports,
    /// Prefixes announced, and the devices they lead to, by index.
    taken: BTreeSet<IpNet>,
    devices: BTreeSet<u32>,
}

impl Reader {
    fn read(&mut self) -> Result<Vec<LocalRoute>, NetlinkError> {
        let links = self.kernel.links()?;
        let names: BTreeMap<u32, &str> = links.iter().map(|l| (l.index, l.name.as_str())).collect();
        let mut routes: Vec<Route> = Vec::new();
        for (table, protocol) in self.imports.wanted() {
            let filter =
                RouteFilter { table: Some(table), protocol: Some(protocol), ..RouteFilter::default() };
            routes.extend(self.kernel.routes(&filter)?);
        }
        let all = self.imports.announce(routes.iter(), |index| names.get(&index).copied());
        self.taken = all.iter().map(|r| r.prefix).collect();
        let of_taken = routes.iter().filter(|r| self.taken.contains(&r.dst));
        self.devices = of_taken.flat_map(|r| r.hops.iter().filter_map(|h| h.dev)).collect();
        Ok(all)
    }

    /// Whether the next reading may be another. IPv4 routes vanish with their device or address without a word.
    fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Route(r) | Event::RouteGone(r) => {
                self.taken.contains(&r.dst)
                    || self.imports.rules.iter().any(|rule| rule.may_fit(r.table, r.protocol))
            }
            Event::Link(l) | Event::LinkGone(l) => self.devices.contains(&l.index),
            Event::AddrGone(_) => true,
            Event::Addr(_) => false,
        }
    }
}

fn run(mut reader: Reader, mut monitor: Monitor, tx: &watch::Sender<Vec<LocalRoute>>, stop: &AtomicBool) {
    let mut refresh = Instant::now() + REFRESH;
    // Since when something may have changed.
    let mut dirty: Option<Instant> = None;
    while !stop.load(Ordering::Relaxed) {
        let until = dirty.map_or(refresh, |d| d + DEBOUNCE);
        match monitor.next(Some(until.saturating_duration_since(Instant::now()))) {
            Ok(events) => {
                if events.iter().any(|e| reader.concerns(e)) {
                    dirty.get_or_insert_with(Instant::now);
                }
            }
            Err(e) => {
                debug!(cause = %e, "reading the kernel's routes again");
                dirty.get_or_insert_with(Instant::now);
                if !matches!(e, NetlinkError::Overrun { .. }) {
                    std::thread::sleep(PAUSE);
                }
            }
        }
        let now = Instant::now();
        if now < refresh && dirty.is_none_or(|d| now < d + DEBOUNCE) {
            continue;
        }
        match guarded(|| reader.read()) {
            Ok(Ok(routes)) => {
                (dirty, refresh) = (None, now + REFRESH);
                tx.send_if_modified(|old| {
                    let differs = *old != routes;
                    *old = routes;
                    differs
                });
            }
            Ok(Err(e)) => {
                warn!(error = %e, "cannot read the routes to import; they stay as they are for now");
                std::thread::sleep(PAUSE);
            }
            Err(panic) => {
                error!(what = words(&panic), "a defect: the routes to import stay as they are for now");
                // The same routes would do the same again: not before something changes.
                (dirty, refresh) = (None, now + REFRESH);
            }
        }
    }
}
