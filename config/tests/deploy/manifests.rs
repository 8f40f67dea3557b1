//! The overlays and deploy/brindle.yaml: rendered, whole, and consistent in themselves.

use std::{collections::BTreeMap, path::Path, process::Command};

use brindle_config::yaml::to_yaml_documents;
use serde_json::{Value, json};

use crate::{
    kustomize::{identity, render, sorted},
    support::{documents, generated, read, repo},
};

const OVERLAYS: [&str; 6] = ["mesh", "native", "beside-calico", "reflectors", "policy-only", "etcd"];

/// All that is rendered: the overlays, and what takes Brindle off the nodes again.
const RENDERED: [&str; 6] = ["mesh", "native", "reflectors", "policy-only", "etcd", REMOVE];
const REMOVE: &str = "remove";

fn folder(name: &str) -> String {
    if name == REMOVE { format!("deploy/{name}") } else { format!("deploy/overlays/{name}") }
}

fn overlay(name: &str) -> Vec<Value> {
    render(&folder(name))
}

fn by_identity(objects: &[Value]) -> BTreeMap<[String; 4], Value> {
    objects.iter().map(|o| (identity(o), sorted(o, ""))).collect()
}

#[test]
fn the_plain_manifest_is_the_mesh_overlay() {
    let objects = overlay("mesh");
    let head =
        "# Generated from deploy/overlays/mesh by `cargo xtask generate`; the sources have comments.\n";
    generated("deploy/brindle.yaml", &format!("{head}{}", to_yaml_documents(&objects)));
    let there = documents("deploy/brindle.yaml", &read("deploy/brindle.yaml"));
    assert_eq!(by_identity(&there), by_identity(&objects));
    // kubectl makes them in the order of the file: definitions and accounts before what uses them.
    let at = |kind: &str| there.iter().position(|o| o["kind"] == kind).expect(kind);
    assert!(at("CustomResourceDefinition") < at("DaemonSet") && at("ConfigMap") < at("DaemonSet"));
}

/// A cluster with definitions of its own would be switched to an empty datastore by ours.
#[test]
fn the_native_overlay_is_the_mesh_without_definitions() {
    let mut mesh = overlay("mesh");
    mesh.retain(|o| o["kind"] != "CustomResourceDefinition");
    assert_eq!(by_identity(&overlay("native")), by_identity(&mesh));
    // The roles allow the same in both groups.
    for rule in mesh.iter().filter(|o| o["kind"] == "ClusterRole").flat_map(|role| list(role, "rules")) {
        let has = |group: &str| list(rule, "apiGroups").any(|g| g == group);
        assert_eq!(has("projectcalico.org"), has("crd.projectcalico.org"), "{rule}");
    }
}

/// Agents where somebody said so, and nothing that acts on the whole cluster.
#[test]
fn beside_calico_agents_run_on_labelled_nodes_alone() {
    let mut native = overlay("native");
    let whole = |o: &Value| o.to_string().contains("brindle-controllers");
    native.retain(|o| !whole(o));
    let node = native.iter_mut().find(|o| o["kind"] == "DaemonSet").expect("the agents");
    node["spec"]["template"]["spec"]["nodeSelector"]["brindle.dev/node"] = "true".into();
    assert_eq!(by_identity(&overlay("beside-calico")), by_identity(&native));
    // The page that tells the way keeps Calico off the same nodes.
    let page = read("docs/from-calico.md");
    assert!(page.contains("kubectl label node NODE brindle.dev/node=true"));
    let patches: Vec<Value> = page
        .split("-p '{")
        .skip(1)
        .filter_map(|rest| rest.split('\'').next())
        .map(|text| serde_saphyr::from_str(&format!("{{{text}")).unwrap_or_else(|e| panic!("{text}: {e}")))
        .collect();
    let terms = "affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let off = json!([{"matchExpressions": [{"key": "brindle.dev/node", "operator": "DoesNotExist"}]}]);
    for at in ["/spec/template/spec", "/spec/calicoNodeDaemonSet/spec/template/spec"] {
        let at = format!("{at}/{terms}");
        assert!(patches.iter().any(|p| p.pointer(&at) == Some(&off)), "no patch of {at}: {patches:?}");
    }
}

#[test]
fn the_real_kustomize_renders_the_same() {
    for name in RENDERED {
        let folder = repo(&folder(name));
        let out = match Command::new("kubectl").arg("kustomize").arg(&folder).output() {
            Ok(out) => out,
            Err(e) => {
                println!(
                    "kubectl cannot be run ({e}): overlays are rendered by the test's own renderer alone"
                );
                // What stands for it: each overlay renders, and to no object twice.
                assert!(!overlay(name).is_empty());
                continue;
            }
        };
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{name}: {said}");
        let theirs = documents(name, &String::from_utf8_lossy(&out.stdout));
        assert_eq!(by_identity(&theirs), by_identity(&overlay(name)), "{name}");
        println!("{name}: kubectl kustomize renders the same {} objects", theirs.len());
    }
}

/// The pod templates of an overlay, with the names of what holds them.
fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let with = objects.iter().filter(|o| !o["spec"]["template"]["spec"].is_null());
    with.map(|o| (identity(o)[3].clone(), &o["spec"]["template"]["spec"])).collect()
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value[field].as_array().into_iter().flatten()
}

fn has(objects: &[Value], kind: &str, name: &Value) -> bool {
    objects.iter().any(|o| o["kind"] == kind && o["metadata"]["name"] == *name)
}

#[test]
fn manifests_refer_to_what_exists() {
    for name in RENDERED {
        let objects = overlay(name);
        for (pod, spec) in pods(&objects) {
            let account = &spec["serviceAccountName"];
            assert!(account.is_null() || has(&objects, "ServiceAccount", account), "{name} {pod}: {account}");
            for volume in list(spec, "volumes") {
                let map = &volume["configMap"]["name"];
                assert!(map.is_null() || has(&objects, "ConfigMap", map), "{name} {pod}: {map}");
            }
            for c in list(spec, "containers").chain(list(spec, "initContainers")) {
                for mount in list(c, "volumeMounts") {
                    let there = list(spec, "volumes").any(|v| v["name"] == mount["name"]);
                    assert!(there, "{name} {pod}: no volume {}", mount["name"]);
                }
                for from in list(c, "envFrom") {
                    assert!(
                        has(&objects, "ConfigMap", &from["configMapRef"]["name"]),
                        "{name} {pod}: {from}"
                    );
                }
            }
        }
        for binding in
            objects.iter().filter(|o| o["kind"] == "ClusterRoleBinding" || o["kind"] == "RoleBinding")
        {
            let role = &binding["roleRef"];
            let kind = role["kind"].as_str().expect("kind");
            assert!(has(&objects, kind, &role["name"]), "{name}: {role}");
            for subject in list(binding, "subjects") {
                assert!(has(&objects, "ServiceAccount", &subject["name"]), "{name}: {subject}");
            }
        }
        for o in &objects {
            let selector = &o["spec"]["selector"]["matchLabels"];
            let of = |p: &Value| *selector == p["spec"]["template"]["metadata"]["labels"];
            // A budget is of somebody else's pods.
            let good = if o["kind"] == "PodDisruptionBudget" { objects.iter().any(of) } else { of(o) };
            assert!(selector.is_null() || good, "{name}: {o}");
        }
    }
}

/// What there are several of is asked how it is, is not on one node only, and is not taken away all at once.
#[test]
fn several_pods_are_several_all_the_time() {
    for name in OVERLAYS {
        let objects = overlay(name);
        for o in objects.iter().filter(|o| o["kind"] == "Deployment") {
            let labels = &o["spec"]["selector"]["matchLabels"];
            let budget = objects.iter().find(|b| {
                b["kind"] == "PodDisruptionBudget" && b["spec"]["selector"]["matchLabels"] == *labels
            });
            let of = &o["metadata"]["name"];
            let budget = budget.unwrap_or_else(|| panic!("{name}: {of} has no budget"));
            let broken = &budget["spec"]["unhealthyPodEvictionPolicy"];
            assert_eq!(broken, "AlwaysAllow", "{name}: of {of} none is ready while the datastore is away");
            let pod = &o["spec"]["template"]["spec"];
            let spread: Vec<&Value> = list(pod, "topologySpreadConstraints")
                .chain(list(
                    &pod["affinity"]["podAntiAffinity"],
                    "requiredDuringSchedulingIgnoredDuringExecution",
                ))
                .filter(|s| s["topologyKey"] == "kubernetes.io/hostname")
                .collect();
            assert!(spread.iter().any(|s| s["labelSelector"]["matchLabels"] == *labels), "{name}: {of}");
            let container = &pod["containers"][0];
            for probe in ["livenessProbe", "readinessProbe"] {
                assert!(container[probe].is_object(), "{name}: {of} has no {probe}");
                let port = &container[probe]["httpGet"]["port"];
                let there = list(container, "ports").any(|p| p["name"] == *port);
                assert!(port.is_null() || there, "{name}: {of}: no port {port}");
            }
        }
    }
}

#[test]
fn with_etcd_nothing_is_asked_of_the_api_server_but_which_nodes_there_are() {
    let objects = overlay("etcd");
    let roles: Vec<&Value> = objects.iter().filter(|o| o["kind"] == "ClusterRole").collect();
    assert_eq!(roles.len(), 1);
    let rule = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]}]);
    assert_eq!(roles[0]["rules"], rule);
    let told = objects.iter().find(|o| o["kind"] == "ConfigMap").expect("a ConfigMap")["data"].clone();
    let pods = pods(&objects);
    let names: Vec<&str> = pods.iter().map(|p| p.0.as_str()).collect();
    assert!(names.contains(&"brindle-node") && names.contains(&"brindle-controllers"), "{names:?}");
    for (pod, spec) in pods {
        let container = &spec["containers"][0];
        let asks = list(container, "env").any(|e| e["name"] == "BRINDLE_KUBERNETES_NODES");
        assert_eq!(spec["automountServiceAccountToken"] != false, asks, "{pod}");
        assert_eq!(
            container.to_string().matches("kubernetes:").count(),
            usize::from(asks),
            "{pod}: {container}"
        );
        assert!(container.to_string().contains("etcd:"), "{pod}: {container}");
        for variable in ["ETCD_ENDPOINTS", "ETCD_CA_CERT_FILE", "ETCD_CERT_FILE", "ETCD_KEY_FILE"] {
            assert!(told[variable].is_string(), "{variable}");
            let own = list(container, "env")
                .any(|e| e["name"] == variable && e["valueFrom"]["configMapKeyRef"]["key"] == variable);
            let all = list(container, "envFrom").any(|f| f["configMapRef"]["name"] == "brindle-config");
            assert!(own || all, "{pod}: {variable}");
        }
        // Who is not root must be let in by the group.
        let volume = list(spec, "volumes").find(|v| v["name"] == "etcd").expect("the certificates");
        let root = spec["securityContext"]["runAsUser"].is_null();
        let group = spec["securityContext"]["fsGroup"].is_u64();
        assert_eq!(volume["secret"]["defaultMode"], if root { 0o400 } else { 0o440 }, "{pod}");
        assert!(root || group, "{pod}");
    }
}

/// Without the runtime's record of attachments no agent collects a leaked address.
#[test]
fn the_agent_sees_what_the_runtime_remembers() {
    let help = read("docs/reference/brindle-node.md");
    let (_, rest) = help.split_once("BRINDLE_CNI_CACHE").expect("the argument has a variable");
    let (_, rest) = rest.split_once("[default: ").expect("and a default");
    let folder = Path::new(rest.split(']').next().unwrap_or_default());
    for name in OVERLAYS {
        let objects = overlay(name);
        let (_, spec) = pods(&objects).into_iter().find(|p| p.0 == "brindle-node").expect("a DaemonSet");
        let agent = &spec["containers"][0];
        assert!(
            !list(agent, "env").any(|e| e["name"] == "BRINDLE_CNI_CACHE"),
            "{name}: the default is asked for"
        );
        let within = |m: &&Value| m["mountPath"].as_str().is_some_and(|p| folder.starts_with(p));
        let mount = list(agent, "volumeMounts").find(within);
        let mount = mount.unwrap_or_else(|| panic!("{name}: nothing is mounted at {}", folder.display()));
        assert_eq!(mount["readOnly"], true, "{name}");
        let volume = list(spec, "volumes").find(|v| v["name"] == mount["name"]).expect("its volume");
        assert_eq!(volume["hostPath"]["path"], mount["mountPath"], "{name}");
        // A node that never had a pod has no such folder yet; the runtime makes what is below.
        assert_eq!(volume["hostPath"]["type"], "DirectoryOrCreate", "{name}");
    }
}

/// What takes Brindle off a node must see all that the agent and its init container put there, and where an agent runs.
#[test]
fn the_removal_reaches_what_the_agent_left() {
    let mesh = overlay("mesh");
    let (_, agent) = pods(&mesh).into_iter().find(|p| p.0 == "brindle-node").expect("a DaemonSet");
    let objects = overlay(REMOVE);
    let [(_, spec)] = pods(&objects).try_into().expect("one DaemonSet");
    let help = read("docs/reference/brindle-node.md");
    let (_, help) = help.split_once("## brindle-node remove").expect("its help");
    for field in ["hostNetwork", "priorityClassName", "tolerations", "nodeSelector", "securityContext"] {
        assert_eq!(spec[field], agent[field], "{field}");
    }
    let (init, rest) = (&spec["initContainers"][0], &spec["containers"][0]);
    assert_eq!(init["command"], json!(["/usr/bin/brindle-node", "remove"]));
    assert_eq!(rest["command"], json!(["/usr/bin/brindle-node", "remove", "--dry-run", "--stay"]));
    for flag in ["--dry-run", "--stay", "--keep-plugins"] {
        assert!(help.contains(flag), "{flag}");
    }
    for c in [init, rest] {
        assert_eq!(c["image"], agent["containers"][0]["image"]);
        for (variable, volume) in [("CNI_BIN_DIR", "cni-bin"), ("CNI_NET_DIR", "cni-net")] {
            assert!(help.contains(&format!("[env: {variable}=]")), "{variable}");
            let told = list(c, "env").find(|e| e["name"] == variable).expect(variable);
            let mount = list(c, "volumeMounts").find(|m| m["name"] == volume).expect(volume);
            assert_eq!(told["value"], mount["mountPath"]);
        }
        for volume in ["state", "cni-bin", "cni-net", "xtables-lock"] {
            let of = |s: &Value| list(s, "volumes").find(|v| v["name"] == volume).cloned();
            assert_eq!(of(spec), of(agent), "{volume}");
            assert!(list(c, "volumeMounts").any(|m| m["name"] == volume), "{volume}");
        }
        // Where the agent has them.
        for volume in ["state", "xtables-lock"] {
            let at = |c: &Value| list(c, "volumeMounts").find(|m| m["name"] == volume).cloned();
            assert_eq!(at(c), at(&agent["containers"][0]), "{volume}");
        }
    }
}

/// Whoever changes the reflectors' AS number must change both.
#[test]
fn reflectors_are_told_one_as_number() {
    let objects = overlay("reflectors");
    let of = |kind: &str| {
        let mut all = objects.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == "brindle-rr");
        all.next().expect(kind)
    };
    let told = &of("Deployment")["spec"]["template"]["metadata"]["annotations"]["brindle.dev/as-number"];
    let told = told.as_str().expect("a text");
    let file = of("ConfigMap")["data"]["brindle-bgpd.yaml"].as_str().expect("the file");
    let there: Vec<&str> = file
        .split("asNumber: ")
        .skip(1)
        .map(|r| r.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default())
        .collect();
    assert_eq!(there, [told; 3]);
}

/// A rolling update takes the next reflector when the clients of this one are back, and nobody speaks without a password.
#[test]
fn reflectors_go_one_by_one_and_let_nobody_in_unasked() {
    let objects = overlay("reflectors");
    let of = |kind: &str| {
        let mut all = objects.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == "brindle-rr");
        all.next().expect(kind)
    };
    let deployment = &of("Deployment")["spec"];
    assert!(deployment["minReadySeconds"].as_u64().is_some_and(|s| s >= 10), "{deployment}");
    assert_eq!(deployment["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    let container = &deployment["template"]["spec"]["containers"][0];
    for (probe, word) in [("livenessProbe", "--live"), ("readinessProbe", "--ready")] {
        let command: Vec<&str> =
            list(&container[probe]["exec"], "command").filter_map(Value::as_str).collect();
        assert_eq!(command[..3], ["/usr/bin/brindle-bgpd", "probe", word], "{probe}");
    }
    let budget = &of("PodDisruptionBudget")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["selector"], deployment["selector"]);

    // Every range has the file of the Secret that is mounted, and the agents are told the same Secret.
    let file = of("ConfigMap")["data"]["brindle-bgpd.yaml"].as_str().expect("the file");
    let [file] = documents("brindle-bgpd.yaml", file).try_into().expect("one");
    let mount = list(container, "volumeMounts").find(|m| m["name"] == "secret").expect("the mount");
    let volume =
        list(&deployment["template"]["spec"], "volumes").find(|v| v["name"] == "secret").expect("it");
    let secret = &volume["secret"];
    assert!(secret["optional"].is_null(), "without the Secret the pod must not start");
    let (folder, path) = (mount["mountPath"].as_str().unwrap(), secret["items"][0]["path"].as_str().unwrap());
    assert!(list(&file, "dynamic").count() > 0);
    for range in list(&file, "dynamic") {
        assert_eq!(range["template"]["passwordFile"], format!("{folder}/{path}"), "{range}");
    }
    let annotations = &deployment["template"]["metadata"]["annotations"];
    assert_eq!(annotations["brindle.dev/password-key"], secret["items"][0]["key"]);
    let template = read("deploy/reflectors/peers.gotemplate");
    assert!(template.contains(&format!("name: {}\n", secret["secretName"].as_str().unwrap())), "{template}");
    let (_, agent) = pods(&objects).into_iter().find(|p| p.0 == "brindle-node").expect("a DaemonSet");
    assert!(list(agent, "volumes").any(|v| v["secret"]["secretName"] == secret["secretName"]));
}

#[test]
fn pods_have_no_more_than_they_need() {
    for name in RENDERED {
        for (pod, spec) in pods(&overlay(name)) {
            assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name} {pod}");
            // The image holds programs of one architecture.
            assert_eq!(spec["nodeSelector"]["kubernetes.io/arch"], "amd64", "{name} {pod}");
            // Whoever writes into folders of the host must be allowed to by SELinux too, and nobody else.
            let host = list(spec, "volumes").any(|v| !v["hostPath"].is_null());
            let label = &spec["securityContext"]["seLinuxOptions"];
            assert_eq!(*label == json!({"level": "s0", "type": "spc_t"}), host, "{name} {pod}");
            for c in list(spec, "containers").chain(list(spec, "initContainers")) {
                let security = &c["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{name} {pod}");
                assert_eq!(security["allowPrivilegeEscalation"], false, "{name} {pod}");
                assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name} {pod}");
                let added: Vec<_> =
                    list(&security["capabilities"], "add").filter_map(Value::as_str).collect();
                let allowed: &[&str] = match c["name"].as_str() {
                    Some("brindle-node") if name == "policy-only" => {
                        &["NET_ADMIN", "NET_RAW", "DAC_OVERRIDE"]
                    }
                    Some("brindle-node") => &["NET_ADMIN", "NET_RAW", "NET_BIND_SERVICE", "DAC_OVERRIDE"],
                    _ if name == REMOVE => &["NET_ADMIN", "NET_RAW", "DAC_OVERRIDE"],
                    // Folders of the host that may be another user's.
                    Some("install-cni") => &["DAC_OVERRIDE"],
                    _ => &[],
                };
                assert_eq!(added, allowed, "{name} {pod} {}", c["name"]);
            }
        }
    }
}

#[test]
fn roles_name_only_kinds_that_have_definitions() {
    let objects = overlay("mesh");
    let crds: Vec<&str> = objects
        .iter()
        .filter(|o| o["kind"] == "CustomResourceDefinition")
        .filter_map(|o| o["spec"]["names"]["plural"].as_str())
        .collect();
    let mut met = 0;
    for role in objects.iter().filter(|o| o["kind"] == "ClusterRole") {
        for rule in list(role, "rules").filter(|r| r["apiGroups"][0] == "crd.projectcalico.org") {
            for resource in list(rule, "resources").filter_map(Value::as_str) {
                let plural = resource.split('/').next().expect("a first part");
                // The native group's name for ipamconfigs.
                assert!(crds.contains(&plural) || plural == "ipamconfigurations", "{plural}");
                met += 1;
            }
            assert!(!list(rule, "verbs").any(|v| v == "*"), "{rule}");
        }
    }
    assert!(met > 20, "{met}");
}
