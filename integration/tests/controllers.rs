//! Two `brindle-controllers` on one datastore, SQLite and a real etcd: one acts, the other follows when it is killed, and
//! what a cluster needs is done once. Real processes; etcd from Debian's etcd-server, in a namespace of its own.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    ipam::IpamHandleSpec,
    lease::LeaseSpec,
    node::NodeSpec,
    pool::{AllowedUse, IpPoolSpec},
    store::{Expect, Store, StoreExt as _},
};
use brindle_integration::{
    bins::bin,
    kube::{ApiServer, Rule, audit},
    netns::TestNs,
    process::Running,
    transcript,
    wait::until,
};
use brindle_ipam::{Allocator as _, AssignRequest, BlockAllocator, NoPause, Now, Owner, View, Wanted};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);

/// A datastore, and a folder for files.
struct Site {
    ns: TestNs,
    dir: PathBuf,
    url: String,
    _etcd: Option<Running>,
}

impl Site {
    fn sqlite(tag: &str) -> Self {
        let (ns, dir) = Self::place(tag);
        let url = format!("sqlite:{}", dir.join("brindle.db").display());
        // As the first agent makes it.
        brindle_config::open(&url).unwrap();
        Self { ns, dir, url, _etcd: None }
    }

    fn etcd(tag: &str) -> Self {
        let (ns, dir) = Self::place(tag);
        let (url, etcd) = transcript::etcd(&dir, Some((ns.ns(), "127.0.0.1")));
        Self { ns, dir, url, _etcd: Some(etcd) }
    }

    fn place(tag: &str) -> (TestNs, PathBuf) {
        let ns = TestNs::new(tag);
        let dir = std::env::temp_dir().join(ns.name());
        fs::create_dir_all(&dir).unwrap();
        (ns, dir)
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default()
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let log =
            fs::File::options().create(true).append(true).open(self.dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(bin("brindle-controllers"));
        command
            .args(["run", "--datastore", &self.url, "--identity", name])
            .args(["--lease-duration", "3s", "--repair-grace", "2s"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    fn start(&self, name: &str) -> Running {
        Running::start_in(self.ns.ns(), &mut self.command(name, &["--grace", "2s", "--node-grace", "2s"]))
    }

    /// Does something with the store, where it can be reached.
    fn with<T: Send>(&self, f: impl AsyncFnOnce(Arc<dyn Store>) -> T + Send) -> T {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let store = brindle_config::open(&self.url).unwrap();
                f(store).await
            })
        };
        self.ns.ns().run(run).unwrap()
    }

    fn put(&self, kind: Kind, name: &str, value: Value) {
        let key = Key::new(kind, kind.namespaced().then_some("shop"), name);
        until("the store takes it", LONG, || {
            let (key, value) = (key.clone(), value.clone());
            self.with(async move |store| store.put(&key, value, Expect::Any).await.map_err(|e| e.to_string()))
        });
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        let key = Key::new(kind, kind.namespaced().then_some("shop"), name);
        self.with(async move |store| store.get(&key).await.ok().map(|e| (*e.value).clone()))
    }

    fn holder(&self) -> Option<String> {
        self.with(async |store| {
            let found = store.get_as::<LeaseSpec>(Some("kube-system"), "brindle-controllers").await.ok()?;
            found.resource.spec.holder().map(|h| h.split('_').next().unwrap_or_default().to_owned())
        })
    }

    fn addresses(&self, service: &str) -> Vec<String> {
        let value = self.get(Kind::Service, service).unwrap_or_default();
        let of = value.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned();
        of.into_iter().flatten().filter_map(|i| Some(i["ip"].as_str()?.to_owned())).collect()
    }

    fn service(&self, name: &str) {
        let value = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop",
            "uid": format!("uid-{name}")}, "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9"}});
        self.put(Kind::Service, name, value);
    }

    fn has_address(&self, service: &str) -> String {
        until(&format!("{service} has an address"), LONG, || match self.addresses(service).as_slice() {
            [one] => Ok(one.clone()),
            other => Err(format!("{other:?}\n{}\n{}", self.log("one"), self.log("two"))),
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["one", "two", "etcd"] {
                eprintln!("--- {name}\n{}", self.log(name));
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A node that is there and one that is gone, each with a pod whose endpoint is gone, a live pod, an orphan handle.
fn fill(site: &Site) {
    let now = Now(u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap());
    site.put(
        Kind::IpPool,
        "pods",
        serde_json::to_value(Resource::new(
            ObjectMeta::named("pods"),
            IpPoolSpec { block_size_raw: Some(28), ..IpPoolSpec::new("10.0.0.0/24".parse().unwrap()) },
        ))
        .unwrap(),
    );
    site.put(
        Kind::IpPool,
        "balancers",
        serde_json::to_value(Resource::new(
            ObjectMeta::named("balancers"),
            IpPoolSpec {
                allowed_uses: vec![AllowedUse::LoadBalancer],
                ..IpPoolSpec::new("198.51.100.0/24".parse().unwrap())
            },
        ))
        .unwrap(),
    );
    site.put(
        Kind::Node,
        "stays",
        serde_json::to_value(Resource::new(ObjectMeta::named("stays"), NodeSpec::default())).unwrap(),
    );
    for (node, pod) in [("stays", "live"), ("stays", "dead"), ("goes", "lost")] {
        let ip = site.with(async move |store| {
            let attributes = [("node", node), ("namespace", "shop"), ("pod", pod)];
            let attributes = attributes.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
            let owner = Owner { handle: format!("net.{pod}"), attributes };
            let request = AssignRequest::for_workload(owner, Wanted::any(1), Wanted::default());
            let view = View::load(&*store, node).await.unwrap();
            let mut a = BlockAllocator::new(store, node, Arc::new(NoPause));
            a.assign(&request, &view, now).await.unwrap().addresses[0].ip
        });
        if pod == "live" {
            site.put(
                Kind::WorkloadEndpoint,
                pod,
                json!({"apiVersion": "projectcalico.org/v3",
                "kind": "WorkloadEndpoint", "metadata": {"name": pod, "namespace": "shop"},
                "spec": {"orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0",
                    "interfaceName": "cali0", "ipNetworks": [format!("{ip}/32")]}}),
            );
        }
    }
    let orphan = IpamHandleSpec { handle_id: "net.orphan".into(), ..IpamHandleSpec::default() };
    site.put(
        Kind::IpamHandle,
        "net.orphan",
        serde_json::to_value(Resource::new(ObjectMeta::named("net.orphan"), orphan)).unwrap(),
    );
    site.put(
        Kind::BgpConfiguration,
        "node.goes",
        json!({"apiVersion": "projectcalico.org/v3",
        "kind": "BGPConfiguration", "metadata": {"name": "node.goes"}, "spec": {}}),
    );
}

fn handles(site: &Site) -> Vec<String> {
    site.with(async |store| {
        let all = store.list(&[Kind::IpamHandle]).await.unwrap().entries;
        all.into_iter().map(|e| e.key.name).filter(|n| n.starts_with("net.")).collect()
    })
}

fn story(site: &Site) {
    fill(site);

    // A dry run says what it would do, and does nothing.
    let dry = site
        .ns
        .ns()
        .run(|| site.command("dry", &["--once", "--dry-run", "--grace", "0s", "--node-grace", "0s"]).status())
        .unwrap()
        .unwrap();
    assert!(dry.success(), "{dry}: {}", site.log("dry"));
    let said = site.log("dry");
    for line in [
        "would release 10.0.0.",
        "would give up the blocks of node goes",
        "would delete BGPConfiguration(node.goes)",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(handles(site).len(), 4, "nothing was done");

    let mut one = site.start("one");
    until("one leads", LONG, || match site.holder().as_deref() {
        Some("one") => Ok(()),
        other => Err(format!("{other:?} {}", site.log("one"))),
    });
    let two = site.start("two");
    until("what is left over is gone, what lives is not", LONG, || match handles(site).as_slice() {
        [live] if live == "net.live" => Ok(()),
        other => Err(format!("{other:?}\n{}", site.log("one"))),
    });
    until("the node's things are gone", LONG, || {
        let blocks = site
            .with(async |store| store.list(&[Kind::IpamBlock, Kind::BlockAffinity]).await.unwrap().entries);
        let goes = blocks.iter().filter(|e| e.value.to_string().contains("goes")).count();
        let config = site.get(Kind::BgpConfiguration, "node.goes");
        if goes == 0 && config.is_none() {
            Ok(())
        } else {
            Err(format!("{goes} {config:?} {}", site.log("one")))
        }
    });
    site.service("first");
    let first = site.has_address("first");
    assert!(!site.log("two").contains("cause="), "only one acts: {}", site.log("two"));

    // The leader dies without a word.
    let died = Instant::now();
    one.kill();
    site.service("second");
    let second = site.has_address("second");
    eprintln!("{}: {:?} from kill -9 to the next leader's first action", site.url, died.elapsed());
    assert_ne!(first, second);
    assert_eq!(site.holder().as_deref(), Some("two"));
    assert_eq!(site.addresses("first"), [first]);
    assert_eq!(handles(site), ["net.live"], "what lives still lives");

    // A service that goes gives its address back.
    site.with(async |store| {
        store.delete(&Key::new(Kind::Service, Some("shop"), "first"), Expect::Any).await.unwrap();
    });
    until("its address is free", LONG, || {
        let all = site.with(async |store| store.list(&[Kind::IpamHandle]).await.unwrap().entries);
        let left = all.iter().filter(|e| e.key.name.starts_with("lb-")).count();
        if left == 1 { Ok(()) } else { Err(format!("{left} {}", site.log("two"))) }
    });

    // One that ends as asked leaves the lease to the next at once.
    let mut three = site.start("three");
    drop(two);
    until("the third leads", LONG, || match site.holder().as_deref() {
        Some("three") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let pid = three.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(three.wait(LONG).success(), "{}", site.log("three"));
    assert_eq!(site.holder(), None, "given back: {}", site.log("three"));
}

#[test]
fn one_of_two_acts_and_the_other_follows_on_sqlite() {
    let site = Site::sqlite("ctl-sq");
    story(&site);
}

#[test]
fn one_of_two_acts_and_the_other_follows_on_etcd() {
    let site = Site::etcd("ctl-et");
    story(&site);
}

/// KubeControllersConfiguration with a few things said.
fn configured(site: &Site, node: Value, assign: &str, more: Value) {
    let mut spec = json!({"controllers": {"node": node, "loadBalancer": {"assignIPs": assign}}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let value = json!({"apiVersion": "projectcalico.org/v3", "kind": "KubeControllersConfiguration",
        "metadata": {"name": "default"}, "spec": spec});
    site.put(Kind::KubeControllersConfiguration, "default", value);
}

/// The configuration object decides while the process runs: nothing is started again.
fn configuration_story(site: &Site) {
    let port = 19_094;
    let one = Running::start_in(site.ns.ns(), &mut site.command("one", &["--node-grace", "1s"]));
    let status = |path: &str| {
        let found = site.get(Kind::KubeControllersConfiguration, "default").unwrap_or_default();
        let there = found.pointer(&format!("/status/runningConfig{path}")).cloned();
        there.ok_or_else(|| format!("{found:#}\n{}", site.log("one")))
    };
    let says = |what: &str, path: &str, value: Value| {
        until(what, LONG, || match status(path) {
            Ok(v) if v == value => Ok(()),
            other => Err(format!("{other:?}\n{}", site.log("one"))),
        });
    };
    says("an object is made and has its status", "/controllers/node/leakGracePeriod", json!("15m0s"));
    fill(site);
    // By making it the controllers have not said that host endpoints are unwanted.
    let made = site.get(Kind::KubeControllersConfiguration, "default").unwrap_or_default();
    assert_eq!(made.pointer("/spec/controllers/node/hostEndpoint"), None, "{made:#}");
    let old = json!({"apiVersion": "projectcalico.org/v3", "kind": "HostEndpoint", "metadata": {"name": "old-auto-hep",
        "labels": {"projectcalico.org/created-by": "calico-kube-controllers"}},
        "spec": {"node": "stays", "interfaceName": "old0"}});
    site.put(Kind::HostEndpoint, "old-auto-hep", old);
    configured(site, json!({"leakGracePeriod": "14m", "reconcilerPeriod": "2s"}), "AllServices", json!({}));
    says("what is said without them", "/controllers/node/leakGracePeriod", json!("14m0s"));
    configured(site, json!({"leakGracePeriod": "13m", "reconcilerPeriod": "2s"}), "AllServices", json!({}));
    says("and once more", "/controllers/node/leakGracePeriod", json!("13m0s"));
    assert!(site.get(Kind::HostEndpoint, "old-auto-hep").is_some(), "{}", site.log("one"));
    let hep = || site.get(Kind::HostEndpoint, "stays-auto-hep");
    let on =
        json!({"hostEndpoint": {"autoCreate": "Enabled"}, "leakGracePeriod": "1s", "reconcilerPeriod": "2s"});
    let more = json!({"logSeverityScreen": "Debug", "prometheusMetricsPort": port});
    configured(site, on.clone(), "RequestedServicesOnly", more);
    says("the new grace period", "/controllers/node/leakGracePeriod", json!("1s"));
    says("the new severity", "/logSeverityScreen", json!("Debug"));
    until("the node has a host endpoint", LONG, || match hep() {
        Some(h) if h["spec"]["interfaceName"] == "*" => Ok(()),
        other => Err(format!("{other:?}\n{}", site.log("one"))),
    });
    until("the one that nobody asks for is gone", LONG, || {
        match site.get(Kind::HostEndpoint, "old-auto-hep") {
            None => Ok(()),
            Some(other) => Err(format!("{other:#}\n{}", site.log("one"))),
        }
    });
    until("what leaked is collected", LONG, || match handles(site).as_slice() {
        [live] if live == "net.live" => Ok(()),
        other => Err(format!("{other:?}\n{}", site.log("one"))),
    });
    // Two templates that might close a device: one is made, the other one named where people look.
    let template = |name: &str, cidr: &str| json!({"generateName": name, "interfaceCIDRs": [cidr]});
    let addressed = json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "stays"},
        "spec": {"bgp": {"ipv4Address": "10.9.0.1/24"}}});
    site.put(Kind::Node, "stays", addressed);
    let mut both = on;
    both["hostEndpoint"]["templates"] =
        json!([template("wide", "0.0.0.0/0"), template("narrow", "10.0.0.0/8")]);
    let more = json!({"logSeverityScreen": "Debug", "prometheusMetricsPort": port});
    configured(site, both, "RequestedServicesOnly", more);
    until("the template that makes none is named", LONG, || {
        let found = site.get(Kind::KubeControllersConfiguration, "default").unwrap_or_default();
        let problems = found["status"]["problems"].to_string();
        let made = ["narrow", "wide"]
            .map(|t| site.get(Kind::HostEndpoint, &format!("stays-{t}-auto-hep")).is_some());
        let good = made == [true, false]
            && problems.contains("template \\\"wide\\\" makes no host endpoint on stays");
        if good { Ok(()) } else { Err(format!("{made:?} {found:#}\n{}", site.log("one"))) }
    });
    let connects = || site.ns.ns().run(|| TcpStream::connect(("127.0.0.1", port)).is_ok()).unwrap();
    until("metrics are answered", LONG, || if connects() { Ok(()) } else { Err(site.log("one")) });

    // A service that asks for nothing gets nothing until all are served.
    site.service("plain");
    let mut asking = site.get(Kind::Service, "plain").unwrap();
    asking["metadata"]["name"] = "asks".into();
    asking["metadata"]["uid"] = "uid-asks".into();
    asking["metadata"]["annotations"] = json!({"projectcalico.org/ipv4pools": "[\"balancers\"]"});
    site.put(Kind::Service, "asks", asking);
    site.has_address("asks");
    assert_eq!(site.addresses("plain"), [""; 0]);
    configured(site, json!({"hostEndpoint": {"autoCreate": "Disabled"}}), "AllServices", json!({}));
    site.has_address("plain");
    until("the host endpoint goes", LONG, || match hep() {
        None => Ok(()),
        Some(h) => Err(format!("{h}\n{}", site.log("one"))),
    });
    until("the port is closed", LONG, || if connects() { Err(site.log("one")) } else { Ok(()) });

    // One that is not named does not run.
    let none = json!({"apiVersion": "projectcalico.org/v3", "kind": "KubeControllersConfiguration",
        "metadata": {"name": "default"}, "spec": {"controllers": {"policy": {"reconcilerPeriod": "5m"}}}});
    site.put(Kind::KubeControllersConfiguration, "default", none);
    until("nothing runs any more", LONG, || match status("/controllers") {
        Ok(c) if c["node"].is_null() && c["loadBalancer"].is_null() => Ok(()),
        other => Err(format!("{other:?}\n{}", site.log("one"))),
    });
    let said = site.log("one");
    assert!(said.contains("without effect in this version: spec.controllers.policy"), "{said}");
    assert!(said.contains("goes on otherwise: "), "{said}");
    drop(one);
}

#[test]
fn the_configuration_object_is_followed_on_sqlite() {
    configuration_story(&Site::sqlite("ctl-cf-sq"));
}

#[test]
fn the_configuration_object_is_followed_on_etcd() {
    configuration_story(&Site::etcd("ctl-cf-et"));
}

#[test]
fn services_of_a_cluster_get_addresses_with_the_rights_of_the_manifests() {
    let server = ApiServer::new();
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/brindle.yaml");
    server.load(&manifests).expect("the manifests apply");
    let dir = std::env::temp_dir().join(format!("bt-{}-ctl-kube", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let kubeconfig = dir.join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &server.service_account_token("kube-system", "brindle-controllers"));
    let log = dir.join("log");
    let start = |name: &str| {
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(bin("brindle-controllers"));
        command
            .args(["run", "--datastore", &format!("kubernetes:{}", kubeconfig.display()), "--identity", name])
            .args([
                "--lease-duration",
                "3s",
                "--controllers",
                "ipam,node,affinity,handle,load-balancer,policy-names,host-endpoint",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file);
        Running::start(&mut command)
    };
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let pool = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool", "metadata": {"name": "balancers"},
        "spec": {"cidr": "198.51.100.0/24", "allowedUses": ["LoadBalancer"]}});
    server.create(pool).expect("a pool");
    server.create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).expect("a node");
    server
        .create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .expect("a namespace");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    server.create(service).expect("a service");
    let mut one = start("one");
    let address = || {
        let found = server.get(("v1", "Service"), ("shop", "web")).unwrap_or_default();
        let ip =
            found.pointer("/status/loadBalancer/ingress/0/ip").and_then(Value::as_str).map(str::to_owned);
        ip.ok_or_else(|| format!("{found:#}\n{}", said()))
    };
    let first = until("the service has an address", LONG, address);
    assert!(first.starts_with("198.51.100."), "{first}");
    let lease = server.get(("coordination.k8s.io/v1", "Lease"), ("kube-system", "brindle-controllers"));
    assert!(
        lease.is_some_and(|l| l["spec"]["holderIdentity"].as_str().is_some_and(|h| h.starts_with("one_")))
    );

    // What it runs with stands in the object it made, and what the object says is done.
    const CONFIGURATION: (&str, &str) = ("crd.projectcalico.org/v1", "KubeControllersConfiguration");
    const HOST: (&str, &str) = ("crd.projectcalico.org/v1", "HostEndpoint");
    let status = |path: &str| {
        let found = server.get(CONFIGURATION, ("", "default")).unwrap_or_default();
        found["status"].pointer(path).cloned().ok_or_else(|| format!("{found:#}\n{}", said()))
    };
    until("the status is written", LONG, || status("/runningConfig/controllers/node/leakGracePeriod"));
    let vars = status("/environmentVars/BRINDLE_CONTROLLERS").expect("what the process was told");
    assert!(vars.as_str().is_some_and(|v| v.starts_with("ipam,node,")), "{vars}");
    let mut object = server.get(CONFIGURATION, ("", "default")).expect("it was made");
    object["spec"]["controllers"]["node"]["hostEndpoint"] = json!({"autoCreate": "Enabled"});
    for field in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"] {
        object["metadata"].as_object_mut().expect("metadata").remove(field);
    }
    object.as_object_mut().expect("an object").remove("status");
    server.apply(object).expect("it is changed");
    until("the node has a host endpoint", LONG, || match server.get(HOST, ("", "n1-auto-hep")) {
        Some(hep) if hep["spec"]["interfaceName"] == "*" => Ok(()),
        other => Err(format!("{other:?}\n{}", said())),
    });
    until("the status says so", LONG, || {
        match status("/runningConfig/controllers/node/hostEndpoint/autoCreate") {
            Ok(on) if on == "Enabled" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });

    // Another one follows, finds everything as it should be, and takes the address back with the service.
    let two = start("two");
    one.kill();
    server.delete(("v1", "Service"), ("shop", "web")).expect("it was there");
    until("its handle is gone", LONG, || {
        let left = server.list(("crd.projectcalico.org/v1", "IPAMHandle"));
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}\n{}", said())) }
    });
    drop(two);
    let all = said().to_lowercase();
    assert!(!all.contains("forbidden") && !all.contains("has to see"), "{all}");
    judge_roles(&server);
    fs::remove_dir_all(&dir).unwrap();
}

/// What the roles grant and this story does not ask for, each with the reason it is there.
const RESERVED: &[(&str, &str)] = &[
    ("get ", "single objects are read again before they are written, whatever their kind"),
    ("list ", "collections of the native API group"),
    ("watch ", "the same"),
    ("patch services/status", "addresses that changed"),
    ("create blockaffinities", "a claim that stopped halfway; the native API group"),
    ("update blockaffinities", "a claim that stopped halfway; the native API group"),
    ("delete blockaffinities", "what a node that is gone has left; the native API group"),
    ("create ipamblocks", "the native API group"),
    ("update ipamblocks", "the native API group"),
    ("delete ipamblocks", "what a node that is gone has left; the native API group"),
    ("create ipamhandles", "the native API group"),
    ("update ipamhandles", "a handle of several addresses"),
    ("delete ipamhandles", "the native API group"),
    ("create kubecontrollersconfigurations", "the native API group"),
    ("update kubecontrollersconfigurations", "the native API group"),
    ("create hostendpoints", "the native API group"),
    ("update hostendpoints", "a node whose labels or addresses change; the native API group"),
    ("delete hostendpoints", "a node that is gone, or host endpoints that are switched off"),
    ("delete bgpconfigurations", "what a node that is gone has left under its name"),
    ("delete felixconfigurations", "what a node that is gone has left under its name"),
    ("create globalnetworkpolicies", "policies of older versions"),
    ("delete globalnetworkpolicies", "policies of older versions"),
    ("create networkpolicies", "policies of older versions"),
    ("delete networkpolicies", "policies of older versions"),
    ("create stagedglobalnetworkpolicies", "policies of older versions"),
    ("delete stagedglobalnetworkpolicies", "policies of older versions"),
    ("create stagednetworkpolicies", "policies of older versions"),
    ("delete stagednetworkpolicies", "policies of older versions"),
];

/// The roles against the calls that were made: nothing refused, nothing granted without a reason.
fn judge_roles(server: &ApiServer) {
    const RBAC: &str = "rbac.authorization.k8s.io/v1";
    let user = "system:serviceaccount:kube-system:brindle-controllers";
    let mut rules = Vec::new();
    for (kind, namespace) in [("ClusterRole", ""), ("Role", "kube-system")] {
        let role = server.get((RBAC, kind), (namespace, "brindle-controllers"));
        rules.extend(Rule::of(&role.unwrap_or_else(|| panic!("no {kind}"))));
    }
    let calls = server.calls();
    let refused: Vec<_> = calls.keys().filter(|c| c.user == user && !c.allowed).collect();
    assert!(refused.is_empty(), "add to the role: {refused:#?}");
    assert!(audit::missing(&rules, &calls, user).is_empty());
    let used: Vec<String> = audit::used(&calls, user).iter().map(audit::Right::text).collect();
    for right in [
        "update leases.coordination.k8s.io",
        "watch services",
        "update kubecontrollersconfigurations.crd.projectcalico.org/status",
        "create hostendpoints.crd.projectcalico.org",
    ] {
        assert!(used.iter().any(|u| u == right), "{right} is not among {used:#?}");
    }
    let idle: Vec<String> = audit::idle(&rules, &calls, user).iter().map(audit::Right::text).collect();
    let explained = |i: &String| RESERVED.iter().any(|(r, _)| i.starts_with(r));
    let unexplained: Vec<_> = idle.iter().filter(|i| !explained(i)).collect();
    assert!(unexplained.is_empty(), "granted, and nobody asked: {unexplained:#?}");
}

#[test]
fn what_cannot_be_meant_is_said_in_one_line() {
    for (args, words) in [
        (&["--datastore", "nonsense:"][..], "datastore"),
        (&["--datastore", "sqlite:/nonexistent/x.db", "--grace", "soon"], "--grace"),
        (&["--datastore", "sqlite:/nonexistent/x.db", "--lease-duration", "1500ms"], "--lease-duration"),
        (&["--datastore", "sqlite:/nonexistent/x.db"], "/nonexistent"),
        (&["--datastore", "sqlite:/tmp/mistyped-brindle.db"], "no such datastore; check the path"),
    ] {
        let out = Command::new(bin("brindle-controllers")).arg("run").args(args).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words) && said.trim().lines().count() == 1, "{args:?}: {said}");
    }
    assert!(!Path::new("/tmp/mistyped-brindle.db").exists(), "nobody has any use for an empty one");
}

/// The datastore answers, the cluster whose nodes count does not: one look has nothing to go by.
#[test]
fn one_look_without_the_nodes_of_kubernetes_is_an_error_of_those() {
    let site = Site::sqlite("conce");
    site.put(Kind::Node, "alone", json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "alone"}, "spec": {}}));
    let kubeconfig = site.dir.join("kubeconfig");
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]});
    fs::write(&kubeconfig, config.to_string()).unwrap();
    for config in [kubeconfig.as_path(), Path::new("/nonexistent/kubeconfig")] {
        let url = format!("kubernetes:{}", config.display());
        let more = ["--once", "--leader-elect=false", "--kubernetes-nodes", &url];
        let out = site.command("once", &more).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{said}");
        assert!(said.contains("--kubernetes-nodes") && said.contains(&*config.to_string_lossy()), "{said}");
        assert!(!said.contains("datastore unavailable") && !said.contains("follow"), "{said}");
    }
}

/// Whoever looks once waits neither for a datastore that is away nor for a leader that stays.
#[test]
fn one_look_that_gets_no_lease_ends_and_says_why() {
    let mut site = Site::sqlite("clease");
    let once = |site: &Site, name: &str| {
        let out = site.command(name, &["--once"]).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{said}");
        said
    };
    let leader = site.start("first");
    until("the first one leads", LONG, || site.holder().filter(|h| h == "first").ok_or("nobody".to_owned()));
    let said = once(&site, "second");
    assert!(
        said.contains("--once: no lease") && said.contains("first_") && said.contains(" leads;"),
        "{said}"
    );
    drop(leader);
    site.url = "etcd:http://127.0.0.1:1".to_owned();
    let said = once(&site, "third");
    assert!(said.contains("--once: no lease") && said.contains("127.0.0.1:1"), "{said}");
}

/// What a path answers at a port of the site, head and body.
fn asked(site: &Site, port: u16, path: &str) -> String {
    let ask = || -> std::io::Result<String> {
        let mut c = TcpStream::connect(("127.0.0.1", port))?;
        c.set_read_timeout(Some(LONG))?;
        write!(c, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut text = String::new();
        c.read_to_string(&mut text)?;
        Ok(text)
    };
    site.ns.ns().run(ask).unwrap().unwrap_or_else(|e| e.to_string())
}

#[test]
fn who_leads_and_who_stands_by_are_both_ready() {
    let site = Site::sqlite("chealth");
    let run = |name: &str, address: &str| {
        Running::start_in(site.ns.ns(), &mut site.command(name, &["--health", address]))
    };
    let says = |port: u16, word: &str| {
        until(&format!("port {port} says {word}"), LONG, || match asked(&site, port, "/readyz") {
            text if text.starts_with("HTTP/1.1 200") && text.contains(word) => Ok(()),
            text => Err(text),
        });
    };
    let one = run("one", "127.0.0.1:9440");
    says(9440, "[+] controllers: leads\n[+] datastore: read\nready\n");
    // A port of both families.
    let _two = run("two", "[::]:9441");
    says(9441, "[+] controllers: stands by\n[+] datastore: read\nready\n");
    assert!(asked(&site, 9441, "/livez").ends_with("[+] controllers: stands by\nlive\n"));
    assert!(asked(&site, 9441, "/metrics").starts_with("HTTP/1.1 404"), "these have a port of their own");
    drop(one);
    says(9441, "[+] controllers: leads");
}

/// The cluster's own datastore is another one; of the API server only the nodes are read, with the overlay's role.
#[test]
fn a_node_that_kubernetes_has_no_more_goes_from_another_datastore() {
    let site = Site::sqlite("ckube");
    let server = transcript::api_server(site.ns.ns(), [127, 0, 0, 1].into());
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for path in ["base/controllers/controllers.yaml", "overlays/etcd/roles.yaml"] {
        server.load(&deploy.join(path)).unwrap_or_else(|e| panic!("{e}"));
    }
    let kubeconfig = site.dir.join("kubeconfig");
    server.write_kubeconfig(&kubeconfig, &server.service_account_token("kube-system", "brindle-controllers"));
    for name in ["stays", "goes"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        server.create(node).unwrap_or_else(|s| panic!("{}", s.message));
        let refers = json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": name},
            "spec": {"orchRefs": [{"nodeName": name, "orchestrator": "k8s"}]}});
        site.put(Kind::Node, name, refers);
    }
    let alone = json!({"apiVersion": "projectcalico.org/v3", "kind": "Node", "metadata": {"name": "router"}, "spec": {}});
    site.put(Kind::Node, "router", alone);
    let url = format!("kubernetes:{}", kubeconfig.display());
    let more = ["--node-grace", "2s", "--kubernetes-nodes", &url];
    let _one = Running::start_in(site.ns.ns(), &mut site.command("one", &more));
    until("it leads", LONG, || match site.holder() {
        Some(_) => Ok(()),
        None => Err(site.log("one")),
    });
    server.delete(("v1", "Node"), ("", "goes")).unwrap_or_else(|s| panic!("{}", s.message));
    until("its resource goes, too", LONG, || match site.get(Kind::Node, "goes") {
        None => Ok(()),
        Some(node) => Err(format!("{node}\n{}", site.log("one"))),
    });
    for name in ["stays", "router"] {
        assert!(site.get(Kind::Node, name).is_some(), "{name}\n{}", site.log("one"));
    }
    let user = "system:serviceaccount:kube-system:brindle-controllers";
    let calls = server.calls();
    let refused: Vec<_> = calls.keys().filter(|c| c.user == user && !c.allowed).collect();
    assert!(refused.is_empty(), "{refused:#?}");
}
