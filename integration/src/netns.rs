//! Namespaces of a test, removed when it ends, also by a panic.

use std::collections::BTreeSet;

use brindle_kernel::{
    netlink::{RouteFilter, Rtnl},
    netns::NetNs,
};

/// A network namespace `bt-<pid>-<tag>`.
#[derive(Debug)]
pub struct TestNs {
    name: String,
    ns: NetNs,
}

impl TestNs {
    /// Creates it, with `lo` up.
    pub fn new(tag: &str) -> Self {
        let name = format!("bt-{}-{tag}", std::process::id());
        let ns = NetNs::create(&name).unwrap_or_else(|e| panic!("{e}; run the tests as root"));
        let made = Self { name, ns };
        made.rtnl().set_up("lo").expect("lo comes up in a fresh namespace");
        made
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ns(&self) -> &NetNs {
        &self.ns
    }

    /// A netlink socket inside.
    pub fn rtnl(&self) -> Rtnl {
        Rtnl::open_in(&self.ns).expect("netlink opens in a live namespace")
    }
}

impl Drop for TestNs {
    fn drop(&mut self) {
        if let Err(e) = NetNs::delete(&self.name) {
            eprintln!("{}: {e}", self.name);
        }
    }
}

/// Names of links and texts of routes of the root namespace: what a lab must leave as it was.
pub fn root_snapshot() -> BTreeSet<String> {
    let mut rtnl = Rtnl::open().expect("netlink opens");
    let links = rtnl.links().expect("links can be listed").into_iter().map(|l| format!("link {}", l.name));
    let mut all: BTreeSet<String> = links.collect();
    let routes = rtnl.routes(&RouteFilter::main()).expect("routes can be listed");
    all.extend(routes.into_iter().map(|r| format!("route {r}")));
    all
}

/// Named namespaces that begin with `prefix`.
pub fn with_prefix(prefix: &str) -> Vec<String> {
    NetNs::list().expect("/run/netns can be listed").into_iter().filter(|n| n.starts_with(prefix)).collect()
}
