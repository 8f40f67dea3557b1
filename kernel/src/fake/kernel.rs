//! The model behind the traits of [`crate::api`], and the world a test looks at.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::{
    fault::{Call, Fault},
    model::Model,
};
use crate::{
    api::{Events, Kernel},
    netlink::{
        Addr, BatchReport, Event, Link, Neigh, NetlinkError, Route, RouteChange, RouteFilter, RouteRefusal,
        Waker,
    },
    sysctl::SysctlError,
};

/// Events a listener holds before it loses some.
const QUEUE: usize = 4096;

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    lost: bool,
    woken: bool,
}

struct Listener {
    /// Whose route changes it does not hear.
    deaf_to: u32,
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

struct Shared {
    model: Mutex<Model>,
    listeners: Mutex<Vec<Listener>>,
    next: AtomicU32,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Runs a change and spreads what happened.
    fn change<T>(&self, by: u32, f: impl FnOnce(&mut Model) -> T) -> T {
        let mut model = lock(&self.model);
        let out = f(&mut model);
        let happened = std::mem::take(&mut model.happened);
        // Under the model's lock: events keep the order of changes.
        for l in lock(&self.listeners).iter() {
            let mut q = lock(&l.queue.0);
            for e in &happened {
                if l.deaf_to == by && matches!(e, Event::Route(_) | Event::RouteGone(_)) {
                    continue;
                }
                if q.events.len() >= QUEUE {
                    q.lost = true;
                } else {
                    q.events.push_back(e.clone());
                }
            }
            l.queue.1.notify_all();
        }
        out
    }
}

/// A modelled namespace: `lo` (down), nothing else.
#[derive(Clone)]
pub struct World(Arc<Shared>);

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl World {
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            model: Mutex::new(Model::new()),
            listeners: Mutex::new(Vec::new()),
            next: AtomicU32::new(1),
        }))
    }

    /// What a program holds: the kernel and its events from now on.
    pub fn open(&self) -> (FakeKernel, FakeEvents) {
        let me = self.0.next.fetch_add(1, Ordering::Relaxed);
        let queue = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        lock(&self.0.listeners).push(Listener { deaf_to: me, queue: Arc::clone(&queue) });
        (FakeKernel { shared: Arc::clone(&self.0), me }, FakeEvents { shared: Arc::clone(&self.0), queue })
    }

    /// Another process: what it does is reported to every program.
    pub fn other(&self) -> FakeKernel {
        FakeKernel { shared: Arc::clone(&self.0), me: 0 }
    }

    /// Makes the next such call (of any program) fail.
    pub fn fail_next(&self, call: Call, fault: Fault) {
        lock(&self.0.model).script.push(call, fault);
        if call == Call::Events {
            for l in lock(&self.0.listeners).iter() {
                l.queue.1.notify_all();
            }
        }
    }

    /// Whether every scripted failure has happened.
    pub fn faults_used_up(&self) -> bool {
        lock(&self.0.model).script.is_empty()
    }

    /// Teaches the kernel a device kind (`ipip`).
    pub fn support(&self, kind: &str) {
        lock(&self.0.model).kinds.insert(kind.to_owned());
    }

    /// From now on it is a kernel without IPv6, as far as parameters show it.
    pub fn without_ipv6(&self) {
        lock(&self.0.model).without_ipv6 = true;
    }

    /// A new device of kind veth, up or down; its index.
    pub fn add_device(&self, name: &str, up: bool) -> u32 {
        self.0.change(0, |m| {
            m.kinds.insert("veth".into());
            let _ = m.add_link(name, "veth", None);
            let index = m.by_name(name).map_or(0, |l| l.index);
            let _ = m.set_up(index, up);
            index
        })
    }

    /// The kernel puts an IPv6 route beside what is there, as a router advertisement has it do.
    pub fn advertise(&self, route: &Route) {
        self.0.change(0, |m| m.advertise(route));
    }

    /// All routes, in order.
    pub fn routes(&self) -> Vec<Route> {
        lock(&self.0.model).routes().cloned().collect()
    }

    /// A device by name.
    pub fn link(&self, name: &str) -> Option<Link> {
        lock(&self.0.model).by_name(name).cloned()
    }

    /// Addresses of a device.
    pub fn addrs(&self, link: u32) -> Vec<IpNet> {
        lock(&self.0.model).addrs.iter().filter(|a| a.link == link).map(|a| a.net).collect()
    }

    /// A parameter's value, if it exists.
    pub fn sysctl(&self, key: &str) -> Option<String> {
        lock(&self.0.model).sysctl(key).ok()
    }

    /// Route changes that took effect, whoever made them.
    pub fn route_writes(&self) -> u64 {
        lock(&self.0.model).route_writes
    }

    /// How often somebody asked for the routes.
    pub fn route_dumps(&self) -> u64 {
        lock(&self.0.model).route_dumps
    }
}

/// One program's access to the model.
pub struct FakeKernel {
    shared: Arc<Shared>,
    me: u32,
}

fn refused(what: String) -> impl FnOnce(i32) -> NetlinkError {
    |errno| NetlinkError::Refused { what, errno, ext: None }
}

impl FakeKernel {
    fn read<T>(&self, call: Call, f: impl FnOnce(&Model) -> T) -> Result<T, NetlinkError> {
        let mut model = lock(&self.shared.model);
        model.route_dumps += u64::from(call == Call::Routes);
        match model.script.take_dump(call) {
            Some(fault) => Err(fault.error(&format!("list ({call:?})"))),
            None => Ok(f(&model)),
        }
    }

    fn write(
        &self,
        call: Call,
        what: String,
        f: impl FnOnce(&mut Model) -> Result<(), i32>,
    ) -> Result<(), NetlinkError> {
        self.shared.change(self.me, |m| match m.script.take(call) {
            Some(fault) => Err(fault.error(&what)),
            None => f(m).map_err(refused(what)),
        })
    }

    fn one_route(&self, change: &RouteChange) -> Result<(), NetlinkError> {
        let what = format!("write route {}", change.route());
        self.write(Call::WriteRoute, what, |m| m.change(change))
    }
}

impl Kernel for FakeKernel {
    fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.read(Call::Links, |m| m.links.values().cloned().collect())
    }

    fn addrs(&mut self) -> Result<Vec<Addr>, NetlinkError> {
        self.read(Call::Addrs, |m| m.addrs.iter().cloned().collect())
    }

    fn routes(&mut self, filter: &RouteFilter) -> Result<Vec<Route>, NetlinkError> {
        self.read(Call::Routes, |m| m.routes().filter(|r| filter.matches(r)).cloned().collect())
    }

    fn neighs(&mut self) -> Result<Vec<Neigh>, NetlinkError> {
        self.read(Call::Links, |m| m.neighs.values().cloned().collect())
    }

    fn write_routes(&mut self, changes: &[RouteChange]) -> BatchReport {
        let mut report = BatchReport::default();
        if let Some(fault) = lock(&self.shared.model).script.take(Call::WriteBulk) {
            report.broken = Some(fault.error("program routes"));
            return report;
        }
        for (index, change) in changes.iter().enumerate() {
            report.sent_to = index + 1;
            match self.one_route(change) {
                Ok(()) => report.done += 1,
                Err(error @ NetlinkError::Refused { .. }) => {
                    report.refused.push(RouteRefusal { index, error })
                }
                Err(error) => {
                    report.broken = Some(error);
                    break;
                }
            }
        }
        report
    }

    fn add_link(&mut self, name: &str, kind: &str, mtu: Option<u32>) -> Result<(), NetlinkError> {
        self.write(Call::AddLink, format!("add {kind} device {name}"), |m| m.add_link(name, kind, mtu))
    }

    fn del_link(&mut self, index: u32) -> Result<(), NetlinkError> {
        self.write(Call::SetLink, format!("delete device {index}"), |m| m.del_link(index))
    }

    fn set_link_up(&mut self, index: u32, up: bool) -> Result<(), NetlinkError> {
        self.write(Call::SetLink, format!("set device {index} up: {up}"), |m| m.set_up(index, up))
    }

    fn set_link_mtu(&mut self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.write(Call::SetLink, format!("set mtu of {index} to {mtu}"), |m| m.set_mtu(index, mtu))
    }

    fn add_addr(&mut self, addr: &Addr) -> Result<(), NetlinkError> {
        self.write(Call::AddAddr, format!("add address {} to {}", addr.net, addr.link), |m| m.add_addr(addr))
    }

    fn del_addr(&mut self, link: u32, net: IpNet) -> Result<(), NetlinkError> {
        self.write(Call::AddAddr, format!("delete address {net} from {link}"), |m| m.del_addr(link, net))
    }

    fn set_neigh(&mut self, neigh: &Neigh) -> Result<(), NetlinkError> {
        self.write(Call::SetNeigh, format!("set neighbour {}", neigh.addr), |m| m.set_neigh(neigh))
    }

    fn sysctl(&mut self, key: &str) -> Result<String, SysctlError> {
        lock(&self.shared.model).sysctl(key).map_err(|e| SysctlError::made("read", key, e))
    }

    fn ensure_sysctl(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        let mut model = lock(&self.shared.model);
        if let Some(Fault::Errno(e)) = model.script.take(Call::Sysctl) {
            return Err(SysctlError::made("write", key, e));
        }
        model.set_sysctl(key, value).map_err(|e| SysctlError::made("write", key, e))
    }
}

/// One program's events.
pub struct FakeEvents {
    shared: Arc<Shared>,
    queue: Arc<(Mutex<Queue>, Condvar)>,
}

impl Events for FakeEvents {
    fn next(&mut self, limit: Option<Duration>) -> Result<Vec<Event>, NetlinkError> {
        let end = limit.and_then(|l| Instant::now().checked_add(l));
        let (queue, ready) = &*self.queue;
        loop {
            // Before the queue's lock: `change` takes the two in the other order.
            if let Some(fault) = lock(&self.shared.model).script.take(Call::Events) {
                lock(queue).events.clear();
                return Err(fault.error("wait for netlink events"));
            }
            let mut q = lock(queue);
            if q.lost {
                q.lost = false;
                q.events.clear();
                return Err(Fault::Overrun.error("wait for netlink events"));
            }
            if !q.events.is_empty() {
                return Ok(q.events.drain(..).collect());
            }
            if std::mem::take(&mut q.woken) {
                return Ok(Vec::new());
            }
            // Bounded, since a scripted fault may come between the check above and this wait.
            let tick = Duration::from_millis(20);
            let left = match end {
                None => tick,
                Some(end) => match end.checked_duration_since(Instant::now()) {
                    None => return Ok(Vec::new()),
                    Some(left) => left.min(tick),
                },
            };
            drop(ready.wait_timeout(q, left));
        }
    }

    fn waker(&self) -> Waker {
        let queue = Arc::clone(&self.queue);
        Waker::new(move || {
            lock(&queue.0).woken = true;
            queue.1.notify_all();
        })
    }
}
