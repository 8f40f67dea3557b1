//! Whatever deploy/ renders to, applied to the API server of the tests and read back: the plain manifest, each overlay and
//! the chart. Nothing is refused, nothing is dropped, and applying once more changes nothing. What the README and
//! docs/kubernetes.md tell to type is typed, where there is a kubectl.

#![expect(
    clippy::print_stdout,
    reason = "what was applied, and whether by kubectl, is for the one who runs it"
)]

#[allow(dead_code, reason = "ordering is for the comparison of renderers")]
#[path = "../../config/tests/deploy/kustomize.rs"]
mod kustomize;
#[expect(dead_code, reason = "what makes generated files is used by the renderers' own tests")]
#[path = "../../config/tests/deploy/support.rs"]
mod support;
#[path = "../../config/tests/deploy/template.rs"]
mod template;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use brindle_integration::{
    cni::{Container, call_plugin_with},
    kube::ApiServer,
    kube_node::KubeNode,
    wait::until,
};
use kustomize::identity;
use serde_json::{Value, json};

/// What was sent and is not in what came back; the server may add defaults.
fn lost(sent: &Value, back: &Value, path: &str, all: &mut Vec<String>) {
    match (sent, back) {
        (Value::Object(sent), Value::Object(back)) => {
            for (name, value) in sent {
                lost(value, back.get(name).unwrap_or(&Value::Null), &format!("{path}.{name}"), all);
            }
        }
        (Value::Array(sent), Value::Array(back)) if sent.len() == back.len() => {
            for (n, (sent, back)) in sent.iter().zip(back).enumerate() {
                lost(sent, back, &format!("{path}[{n}]"), all);
            }
        }
        (sent, back) if sent == back => {}
        // The server keeps some numbers as floating point.
        (Value::Number(sent), Value::Number(back)) if sent.as_f64() == back.as_f64() => {}
        (sent, back) => all.push(format!("{path}: {sent} became {back}")),
    }
}

fn applied_and_read_back(name: &str, objects: &[Value]) {
    assert!(!objects.is_empty(), "{name} renders to nothing");
    let server = ApiServer::new();
    for object in objects {
        let applied = server.apply(object.clone());
        applied.unwrap_or_else(|e| panic!("{name}: {:?} is refused: {}", identity(object), e.message));
    }
    for object in objects {
        let [api, kind, namespace, own] = identity(object);
        let back = server.get((&api, &kind), (&namespace, &own));
        let back = back.unwrap_or_else(|| panic!("{name}: {:?} is not there", identity(object)));
        let mut all = Vec::new();
        lost(object, &back, &format!("{kind}/{own}"), &mut all);
        assert!(all.is_empty(), "{name}: {all:#?}");
    }
    let before = server.resource_version();
    for object in objects {
        server.apply(object.clone()).unwrap_or_else(|e| panic!("{name}: {}", e.message));
    }
    assert_eq!(server.resource_version(), before, "{name}: applying once more changes nothing");
    println!("{name}: {} objects applied to the tests' API server and read back", objects.len());
}

#[test]
fn the_plain_manifest() {
    let plain = "deploy/brindle.yaml";
    applied_and_read_back(plain, &support::documents(plain, &support::read(plain)));
}

#[test]
fn every_overlay() {
    for overlay in ["mesh", "native", "beside-calico", "reflectors", "policy-only", "etcd"] {
        let folder = format!("deploy/overlays/{overlay}");
        applied_and_read_back(&folder, &kustomize::render(&folder));
    }
}

#[test]
fn the_chart() {
    applied_and_read_back("the chart", &template::chart(|_| {}));
    applied_and_read_back(
        "the chart with reflectors",
        &template::chart(|v| v["reflectors"]["enabled"] = true.into()),
    );
}

/// A cloud's route tables hold the Nodes' podCIDRs, whatever pools there are. Needs root and Debian's
/// containernetworking-plugins.
#[test]
fn where_somebody_else_routes_pods_get_addresses_of_their_nodes_pod_cidr() {
    let mut node = KubeNode::new("kcloud", "node-a", "10.0.0.1/16");
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
    node.server.apply(object).unwrap_or_else(|s| panic!("{}", s.message));
    // The environment of the agent: what the ConfigMap has, and what the container has beside it.
    let objects = kustomize::render("deploy/overlays/policy-only");
    let of = |kind: &str| objects.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    let container = &of("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let config = of("ConfigMap")["data"].as_object().expect("a mapping");
    node.vars = config.iter().map(|(k, v)| (k.clone(), v.as_str().expect("a text").to_owned())).collect();
    assert!(
        container["env"].as_array().is_some_and(|all| all.iter().any(|v| v["name"] == "BRINDLE_INSTALL_CNI"))
    );
    let folder = node.dir.join("net.d");
    node.vars.push(("BRINDLE_INSTALL_CNI".into(), "true".into()));
    node.vars.push(("CNI_NET_DIR".into(), folder.display().to_string()));
    node.start_agent(&[]);
    let conflist = until("the conflist is there", Duration::from_secs(90), || {
        fs::read_to_string(folder.join("10-brindle.conflist")).map_err(|e| format!("{e}\n{}", node.log()))
    });
    let conflist: Value = serde_json::from_str(&conflist).unwrap();
    let mut conf = conflist["plugins"][0].clone();
    for name in ["cniVersion", "name"] {
        conf[name] = conflist[name].clone();
    }
    // As a runtime calls it, with the files of this test.
    conf["agent_socket"] = json!(node.dir.join("cni.sock"));
    conf["state_dir"] = json!(node.dir);
    conf["ipam"]["dataDir"] = json!(node.dir.join("host-local"));
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod-a", "namespace": "default"},
        "spec": {"nodeName": "node-a", "containers": [{"name": "c", "image": "i:1"}]}});
    node.server.apply(pod).unwrap_or_else(|s| panic!("{}", s.message));
    let c = Container::new();
    let said = call_plugin_with(node.ns.ns(), &conf, "ADD", &c.id, &c.netns(), "pod-a");
    assert!(said.ok && said.address().starts_with("10.244.7."), "{said:?}\n{}", node.log());
    assert!(node.server.list(("crd.projectcalico.org/v1", "IPPool")).is_empty(), "no pool is made");
    assert!(call_plugin_with(node.ns.ns(), &conf, "DEL", &c.id, &c.netns(), "pod-a").ok);
}

/// The commands that a section of a page tells to type, block by block.
fn blocks(page: &str, section: &str) -> Vec<String> {
    let text = support::read(page);
    let heading = format!("\n## {section}\n");
    let (_, rest) = text.split_once(&heading).unwrap_or_else(|| panic!("{page} has no section {section:?}"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    let mut all = vec![String::new()];
    for line in section.lines() {
        match line.strip_prefix("    ") {
            Some(command) => *all.last_mut().unwrap() += &format!("{command}\n"),
            None if !all.last().unwrap().is_empty() => all.push(String::new()),
            None => {}
        }
    }
    all.retain(|b| b.contains("kubectl "));
    assert!(!all.is_empty(), "{page}, {section}: nothing to type");
    all
}

/// The pages' commands, typed into a shell with the real kubectl. Two things are done for it: the server has no OpenAPI
/// documents to validate with and reads no protobuf, so `create` goes through `apply`; and there is nobody to run pods.
struct Typist {
    server: ApiServer,
    dir: std::path::PathBuf,
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Typist {
    /// `None` where there is no kubectl.
    fn new(tag: &str) -> Option<Self> {
        let path = std::env::var("PATH").unwrap_or_default();
        let real = std::env::split_paths(&path).map(|d| d.join("kubectl")).find(|p| p.exists());
        let Some(real) = real else {
            println!(
                "kubectl is not installed: what {tag} tells to type is not typed, only what it applies is"
            );
            return None;
        };
        let dir = std::env::temp_dir().join(format!("brindle-{tag}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let wrapper = dir.join("kubectl");
        let script = format!(
            "#!/bin/sh -e\ncase \" $* \" in\n*' create '*) {0} \"$@\" --dry-run=client -o yaml | {0} apply --validate=false -f - ;;\n\
             *' apply '*) {0} \"$@\" --validate=false ;;\n*) {0} \"$@\" ;;\nesac\n",
            real.display()
        );
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let server = ApiServer::with_tls();
        server.write_kubeconfig(&dir.join("config"), server.admin_token());
        Some(Self { server, dir })
    }

    #[track_caller]
    fn types(&self, block: &str) -> String {
        let path = format!("{}:{}", self.dir.display(), std::env::var("PATH").unwrap_or_default());
        // What is typed on another machine or inside a pod is not for this shell.
        let elsewhere =
            |l: &&str| !l.starts_with("cargo ") && !l.starts_with("brindlectl ") && !l.contains(" exec ");
        let script: String = block.lines().filter(elsewhere).map(|l| format!("{l}\n")).collect();
        let out = Command::new("sh")
            .args(["-e", "-c", &script])
            .current_dir(support::repo("."))
            .env("PATH", path)
            .env("HOME", &self.dir)
            .env("KUBECONFIG", self.dir.join("config"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{script}\n{said}");
        said
    }

    /// What the cluster's own controller says of a DaemonSet once its pods run.
    fn daemons_run(&self) {
        let place = ("kube-system", "brindle-node");
        let set = self.server.get(("apps/v1", "DaemonSet"), place).expect("a DaemonSet brindle-node");
        let status = json!({"status": {"observedGeneration": set["metadata"]["generation"], "desiredNumberScheduled": 2,
            "currentNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 2, "numberReady": 2,
            "numberMisscheduled": 0}});
        self.server.patch(("apps/v1", "DaemonSet"), place, "status", &status).unwrap();
    }
}

#[test]
fn the_readmes_steps_can_be_typed() {
    let Some(typist) = Typist::new("README") else { return };
    for block in blocks("README.md", "On a cluster") {
        let (apply, look) = block.split_once("kubectl -n kube-system rollout").expect("the last step looks");
        let said = typist.types(apply);
        assert!(said.contains("daemonset.apps/brindle-node created"), "{said}");
        typist.daemons_run();
        let said = typist.types(&format!("kubectl -n kube-system rollout{look}"));
        assert!(said.contains("successfully rolled out"), "{said}");
    }
    println!("the steps of the README were typed into the real kubectl, against the tests' API server");

    for block in blocks("docs/kubernetes.md", "Asking all nodes at once") {
        typist.types(&block);
    }
    let secret = typist.server.get(("v1", "Secret"), ("kube-system", "brindle-admin")).expect("the Secret");
    let set = typist.server.get(("apps/v1", "DaemonSet"), ("kube-system", "brindle-node")).unwrap();
    let pod = &set["spec"]["template"]["spec"];
    let named = |list: &Value, name: &str| {
        let found = list.as_array().into_iter().flatten().find(|i| i["name"] == name);
        found.cloned().unwrap_or_else(|| panic!("{list} has no {name}"))
    };
    assert_eq!(named(&pod["volumes"], "admin")["secret"]["secretName"], secret["metadata"]["name"]);
    // The file that the agent reads is the key of the Secret where it is mounted.
    let container = &pod["containers"][0];
    let mount = named(&container["volumeMounts"], "admin")["mountPath"].as_str().unwrap().to_owned();
    let file = named(&container["env"], "BRINDLE_ADMIN_TOKEN_FILE")["value"].as_str().unwrap().to_owned();
    let key = Path::new(&file).strip_prefix(&mount).expect("within the mount").to_str().unwrap().to_owned();
    assert!(secret["data"][&key].is_string() || secret["stringData"][&key].is_string(), "{secret}");
    let config = typist.server.get(("v1", "ConfigMap"), ("kube-system", "brindle-config")).unwrap();
    assert_eq!(config["data"]["BRINDLE_ADMIN_LISTEN"], "0.0.0.0:9180");
}

#[test]
fn reflectors_are_wired_as_the_page_says() {
    let Some(typist) = Typist::new("reflectors") else { return };
    for block in blocks("README.md", "On a cluster") {
        typist.types(block.split_once("kubectl -n kube-system rollout").expect("the last step looks").0);
    }
    let parts = kustomize::render("deploy/reflectors");
    let deployment = parts.iter().find(|o| o["kind"] == "Deployment").expect("the reflectors");
    let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
    // The third is not bound to a node yet.
    for (name, ip) in [("node-a", "192.0.2.1"), ("node-b", "fd00::1"), ("node-c", "")] {
        typist
            .server
            .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}))
            .unwrap();
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("brindle-rr-{name}"), "namespace": "kube-system", "labels": {"k8s-app": "brindle-rr"},
                "annotations": annotations},
            "spec": {"nodeName": name, "hostNetwork": true, "containers": [{"name": "c", "image": "i:1"}]},
            "status": {"phase": "Running", "podIP": ip, "hostIP": ip, "podIPs": [{"ip": ip}]}});
        if ip.is_empty() {
            pod["status"] = json!({"phase": "Pending"});
        }
        typist.server.apply(pod).unwrap();
    }
    for block in blocks("docs/kubernetes.md", "Route reflectors") {
        typist.types(&block.replace("NODE-A", "node-a").replace("NODE-B", "node-b"));
    }
    let peers = typist.server.list(("crd.projectcalico.org/v1", "BGPPeer"));
    let mut wired: Vec<String> =
        peers.iter().map(|p| format!("{} {}", p["spec"]["peerIP"], p["spec"]["asNumber"])).collect();
    wired.sort();
    // The password the page has made is the one both sides look for.
    let secret = typist.server.get(("v1", "Secret"), ("kube-system", "bgp-secrets")).expect("the Secret");
    for peer in &peers {
        let asked = &peer["spec"]["password"]["secretKeyRef"];
        assert_eq!(asked["name"], secret["metadata"]["name"], "{peer}");
        let key = asked["key"].as_str().expect("a key");
        assert!(secret["data"][key].is_string() || secret["stringData"][key].is_string(), "{secret}");
    }
    assert_eq!(wired, [r#""192.0.2.1:1790" 64512"#, r#""[fd00::1]:1790" 64512"#]);
    let config =
        typist.server.get(("crd.projectcalico.org/v1", "BGPConfiguration"), ("", "default")).unwrap();
    assert_eq!(config["spec"]["nodeToNodeMeshEnabled"], false);
    let node = typist.server.get(("v1", "Node"), ("", "node-a")).unwrap();
    assert_eq!(node["metadata"]["labels"]["brindle.dev/route-reflector"], "true");
}

/// What every program says to type where the cluster lacks the definitions, or has them beside native ones.
#[test]
fn the_remedy_for_lacking_definitions_can_be_typed() {
    let Some(typist) = Typist::new("definitions") else { return };
    const DEFINITION: (&str, &str) = ("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let pools = || typist.server.get(DEFINITION, ("", "ippools.crd.projectcalico.org"));
    for apply in ["kubectl apply -k deploy/crds\n", "kubectl apply --server-side -k deploy/crds\n"] {
        typist.types(apply);
        assert!(pools().is_some(), "{apply}");
        typist.types("kubectl delete --wait=false -k deploy/crds\n");
        assert_eq!(pools(), None, "{apply}");
    }
}
