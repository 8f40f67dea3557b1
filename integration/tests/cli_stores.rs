//! Every command of `brindlectl` that needs a datastore, over the real binary, on each kind of datastore: what a person
//! sees must be the same to the letter, and is written down once. Needs Debian's etcd-server.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use brindle_integration::transcript::{Backend, Kind};

const RESOURCES: &str = r#"
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: blue, labels: {zone: a}, annotations: {kubernetes.io/note: kept}}
spec: {cidr: 10.1.0.0/16, ipipMode: Always, natOutgoing: true, blockSize: 26}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: green}
spec: {cidr: 10.2.0.0/16}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: tor}
spec: {peerIP: 192.0.2.1, asNumber: 64601, nodeSelector: all()}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: few}
spec:
  exportV4: [{action: Accept, matchOperator: In, cidr: 10.1.0.0/16}]
---
apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: security}
spec: {order: 100}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: quarantine}
spec: {tier: security, selector: app == "spy", egress: [{action: Deny}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {selector: app == "web", ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {name: bad, labels: {kind: bad}}
spec: {nets: [198.51.100.0/24]}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node1-eth0, labels: {host: "yes"}}
spec: {node: node1, interfaceName: eth0, expectedIPs: [192.0.2.7]}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {logSeverityScreen: Info}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64512, nodeToNodeMeshEnabled: true, logSeverityScreen: Info}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: first}
spec: {reservedCIDRs: [10.1.0.0/30]}
---
apiVersion: projectcalico.org/v3
kind: KubeControllersConfiguration
metadata: {name: default}
spec:
  healthChecks: Enabled
  controllers:
    node: {leakGracePeriod: 10m, syncLabels: Enabled, hostEndpoint: {autoCreate: Disabled}}
    policy: {reconcilerPeriod: 5m}
---
apiVersion: projectcalico.org/v3
kind: CalicoNodeStatus
metadata: {name: asks}
spec: {node: node1, classes: [Agent, BGP], updatePeriodSeconds: 10}
"#;

/// Everything that reads or writes resources.
const LINES: &[&str] = &[
    "get ippools",
    "apply --dry-run -f all.yaml",
    "create -f all.yaml",
    "create -f all.yaml",
    "create --skip-exists -f all.yaml",
    "apply -f all.yaml",
    "get ippools",
    "get ippools -o wide",
    "get bgppeers,bgpfilter,tiers",
    "get gnp,np -A -o wide",
    "get tier security -o jsonpath={.spec.order}",
    "get np -n shop",
    "get gns,hep -o wide",
    "get felixconfig,bgpconfig,reservation",
    "get kubecontrollersconfiguration",
    "get kccs -o wide",
    "get kcc default -o yaml",
    r#"patch kcc default -p '{"spec": {"controllers": {"node": {"hostEndpoint": {"autoCreate": "Enabled"}}}}}'"#,
    r#"patch kcc default -p '{"spec": {"controllers": {"loadBalancer": {"assignIPs": "Some"}}}}'"#,
    "get kcc -o jsonpath='{.items[0].spec.controllers.node}'",
    "get nodestatus",
    "get caliconodestatuses asks -o wide",
    r#"patch nodestatus asks -p '{"spec": {"classes": ["Routs"]}}'"#,
    "get ipp,tier -o name",
    "get ippool blue -o yaml",
    "get ippool blue -o json --export",
    r#"get ippools -l 'zone == "a"' -o name"#,
    "get ippools -o custom-columns=NAME,CIDR",
    r"get ippools -o custom-columns=N:.metadata.name,NOTE:.metadata.annotations.kubernetes\.io/note",
    r#"get ippools -o 'jsonpath={range .items[*]}{.metadata.name}={.spec.cidr}{"\n"}{end}'"#,
    r#"get ippools -o 'jsonpath={.items[?(@.spec.ipipMode=="Always")].metadata.name}'"#,
    r#"get ippools -o 'go-template={{range .items}}{{.metadata.name}} {{.spec.cidr}}{{"\n"}}{{end}}'"#,
    r#"get ippools -o 'go-template={{range .}}{{range .Items}}{{.Name}} {{.Spec.IPIPMode}};{{end}}{{end}}'"#,
    r#"get bgppeer tor -o 'go-template={{.spec.peerIP}} {{.spec.asNumber}} in {{config "asNumber"}}'"#,
    "get ippools -o go-template-file=pools.gotemplate",
    "get ippools -o go-template-file=broken.gotemplate",
    "get ippools -o 'go-template={{range .items}}{{printff .kind}}{{end}}'",
    "get ippools -o go-template",
    "get ippools -o go-templat={{.}}",
    "get -f all.yaml -o name",
    "get ippol",
    "get ippool bleu",
    "get np web",
    "diff -f all.yaml",
    "diff -f changed.yaml",
    "apply -f changed.yaml",
    "replace -f all.yaml",
    r#"patch ippool blue -p '{"spec": {"disabled": true}}'"#,
    r#"patch ippool blue -t json -p '[{"op": "remove", "path": "/spec/disabled"}]'"#,
    r#"patch ippool blue -p '{"spec": {"cidr": "10.9.0.0/16"}}'"#,
    "label ippool blue zone=b",
    "label ippool blue zone=b --overwrite",
    "label ippool blue zone --remove",
    "edit ippool blue",
    "get ippool blue -o custom-columns=NAME,IPIPMODE",
    "validate -f all.yaml",
    "apply -f folder",
    "get ippool red -o name",
    "apply --continue -f folder",
    "get ippool red -o name",
    "apply -f - < apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 10.3.0.0/16, ipipmode: Always}\n",
    "ipam show",
    "ipam show --show-configuration",
    "ipam configure --strictaffinity=true",
    "ipam show --ip 10.1.0.9",
    "ipam check",
    "policy trace 192.0.2.9 node1-eth0:22",
    "datastore migrate export",
    "datastore migrate lock",
    "get clusterinfo default -o custom-columns=NAME,DATASTOREREADY",
    "datastore migrate unlock",
    "delete ippool red x green --dry-run",
    "delete ippool nothing",
    "delete -f all.yaml --skip-not-exists",
    "get ipp,np,gnp,tier,bgppeer -A -o name",
    "version",
    "version --all",
    "status",
    "route a b",
];

fn transcript(backend: &Backend) -> String {
    fs::write(backend.dir.join("all.yaml"), RESOURCES).unwrap();
    let changed =
        RESOURCES.replace("natOutgoing: true", "natOutgoing: false").replace("order: 100", "order: 50");
    fs::write(backend.dir.join("changed.yaml"), changed).unwrap();
    let template =
        "{{range .items -}}\n{{.metadata.name | printf \"%-8s\"}}{{if .spec.natOutgoing}}NAT{{end}}\n{{end}}";
    fs::write(backend.dir.join("pools.gotemplate"), template).unwrap();
    let broken = "{{/* of people */}}\n{{range .items}}{{len .spec.blockSize}}{{end}}\n";
    fs::write(backend.dir.join("broken.gotemplate"), broken).unwrap();
    let folder = backend.dir.join("folder");
    fs::create_dir(&folder).unwrap();
    let pool = |name: &str, cidr: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}}}\n"
        )
    };
    fs::write(folder.join("a.yaml"), pool("red", "10.4.0.0/16")).unwrap();
    fs::write(folder.join("b.yaml"), pool("x", "10.5.0.0/99")).unwrap();
    LINES.iter().map(|line| backend.run(line) + "\n").collect()
}

#[test]
fn every_command_says_the_same_on_sqlite() {
    insta::assert_snapshot!("commands", transcript(&Backend::new(Kind::Sqlite, "sqlite")));
}

#[test]
fn every_command_says_the_same_on_etcd() {
    insta::assert_snapshot!("commands", transcript(&Backend::new(Kind::Etcd, "etcd")));
}

#[test]
fn every_command_says_the_same_on_kubernetes() {
    insta::assert_snapshot!("commands", transcript(&Backend::new(Kind::Kubernetes, "kube")));
}

/// What Kubernetes keeps itself is refused before anything is written, and with `--dry-run` too.
#[test]
fn a_file_with_what_kubernetes_keeps_itself_changes_nothing() {
    let kube = Backend::new(Kind::Kubernetes, "own-kube");
    let file = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: mine}\nspec: {order: 7}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: kns.x}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {name: nobody}\n";
    let apply = |flags: &str| kube.run(&format!("apply -f -{flags} < {file}"));
    // A namespace that is not there is the server's to refuse; asked for each document before the first is written.
    let lost = "apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: mine}\nspec: {order: 7}\n---\n\
                apiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: lost, namespace: nowhere}\nspec: {nets: []}\n";
    for flags in ["", " --dry-run"] {
        let said = kube.run(&format!("apply -f -{flags} < {lost}"));
        assert!(said.contains("document 2: kind: NetworkSet(nowhere/lost): namespaces"), "{said}");
        assert!(said.contains("create it first") && said.ends_with("[2]\n"), "{said}");
        assert!(!kube.run("get tiers -o name").contains("mine"), "{said}");
    }
    for flags in ["", " --dry-run"] {
        let said = apply(flags);
        assert!(
            said.contains(":7:7: document 2: kind: Profile(kns.x): profiles follow from Namespaces"),
            "{said}"
        );
        assert!(said.contains("document 3: kind: Node(nobody): there is no such Node"), "{said}");
        assert!(said.contains("nothing was written") && said.ends_with("[2]\n"), "{said}");
        assert!(!kube.run("get tiers -o name").contains("mine"), "{said}");
    }
    let said = apply(" --continue");
    assert!(said.ends_with("[1]\n"), "{said}");
    assert!(kube.run("get tiers -o name").contains("tier/mine"), "{said}");
}

/// Somebody with calicoctl's variables, and none of ours.
#[test]
fn calicoctls_variables_name_the_datastore() {
    let etcd = Backend::new(Kind::Etcd, "env-etcd");
    let kube = Backend::new(Kind::Kubernetes, "env-kube");
    let kubeconfig = kube.url.trim_start_matches("kubernetes:");
    let servers = etcd.url.trim_start_matches("etcd:");
    for (backend, kind, variable, value) in
        [(&etcd, "etcdv3", "ETCD_ENDPOINTS", servers), (&kube, "kubernetes", "KUBECONFIG", kubeconfig)]
    {
        let made = backend.run(
            "apply -f - < apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: mine}\nspec: {order: 7}\n",
        );
        assert!(made.ends_with("[0]\n"), "{made}");
        let mut command = backend.command(&["--allow-version-mismatch", "get", "tier", "mine", "-o", "name"]);
        let command =
            command.env_remove("BRINDLE_DATASTORE").env("DATASTORE_TYPE", kind).env(variable, value);
        let out = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "tier/mine", "{kind}: {out:?}");
        // The kind may follow from the variable, as long as this machine has no datastore of its own.
        let mut command = backend.command(&["get", "tier", "mine", "-o", "name"]);
        let out = command.env_remove("BRINDLE_DATASTORE").env(variable, value).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "tier/mine", "{variable}: {out:?}");
        // With the long names, which win.
        let mut command = backend.command(&["get", "tier", "mine", "-o", "name"]);
        command.env_remove("BRINDLE_DATASTORE").env("DATASTORE_TYPE", "none").env(variable, "none");
        command.env("CALICO_DATASTORE_TYPE", kind).env(format!("CALICO_{variable}"), value);
        let out = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "tier/mine", "{kind}: {out:?}");
    }
    let mut command = etcd.command(&["get", "nodes"]);
    let out = command.env_remove("BRINDLE_DATASTORE").env("DATASTORE_TYPE", "etcd2").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(said.contains("DATASTORE_TYPE=etcd2: expected kubernetes or etcdv3"), "{said}");
}

/// A server by single variables, with no kubeconfig, and above one.
#[test]
fn single_variables_name_the_api_server() {
    let kube = Backend::new(Kind::Kubernetes, "env-single");
    let kubeconfig = kube.url.trim_start_matches("kubernetes:");
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(kubeconfig).unwrap()).expect("a kubeconfig in JSON");
    let text =
        |path: &str| config.pointer(path).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
    let ask = |variables: &[(&str, &str)]| {
        let mut command = kube.command(&["get", "tiers", "-o", "name"]);
        command.env_remove("BRINDLE_DATASTORE").envs(variables.iter().copied()).output().unwrap()
    };
    let made = kube.run(
        "apply -f - < apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: mine}\nspec: {order: 7}\n",
    );
    assert!(made.ends_with("[0]\n"), "{made}");
    let (server, token) = (text("/clusters/0/cluster/server"), text("/users/0/user/token"));
    let login = [
        ("K8S_API_ENDPOINT", server.as_str()),
        ("K8S_API_TOKEN", &token),
        ("K8S_INSECURE_SKIP_TLS_VERIFY", "true"),
    ];
    let out = ask(&login);
    assert!(String::from_utf8_lossy(&out.stdout).contains("tier/mine"), "{out:?}");
    // A wrong token stands above the kubeconfig's right one.
    let out = ask(&[("KUBECONFIG", kubeconfig), ("K8S_API_TOKEN", "wrong")]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && said.contains("401 Unauthorized"), "{said}");
}

/// calicoctl's file, by `-c` and with a context of its kubeconfig.
#[test]
fn calicoctls_configuration_file_names_the_datastore() {
    let etcd = Backend::new(Kind::Etcd, "cfg-etcd");
    let kube = Backend::new(Kind::Kubernetes, "cfg-kube");
    let head = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata:\nspec:\n";
    let kubeconfig = kube.url.trim_start_matches("kubernetes:");
    let servers = etcd.url.trim_start_matches("etcd:");
    let specs = [
        (&etcd, format!("  datastoreType: etcdv3\n  etcdEndpoints: {servers}\n"), ""),
        (&kube, format!("  datastoreType: kubernetes\n  kubeconfig: {kubeconfig}\n"), "nowhere"),
    ];
    for (backend, spec, context) in specs {
        let made = backend.run(
            "apply -f - < apiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: mine}\nspec: {order: 7}\n",
        );
        assert!(made.ends_with("[0]\n"), "{made}");
        let file = backend.dir.join("calicoctl.cfg");
        fs::write(&file, format!("{head}{spec}")).unwrap();
        let ask = |more: &[&str]| {
            let mut command = backend.command(&["get", "tier", "mine", "-o", "name"]);
            command.arg("-c").arg(&file).args(more).env("BRINDLE_DATASTORE", "sqlite:/nonexistent/x.db");
            command.output().unwrap()
        };
        let out = ask(&[]);
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "tier/mine", "{out:?}");
        let out = ask(&["--context", "nowhere"]);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains(context), "{said}");
        assert!(said.contains("context"), "{said}");
        fs::write(&file, format!("{head}  etcdEndpoint: http://a\n")).unwrap();
        let said = String::from_utf8_lossy(&ask(&[]).stderr).into_owned();
        assert!(said.contains("calicoctl.cfg:5:") && said.contains("did you mean etcdEndpoints?"), "{said}");
    }
}

#[test]
fn everything_moves_from_one_datastore_to_another_and_back() {
    let from = Backend::new(Kind::Sqlite, "from");
    let to = Backend::new(Kind::Etcd, "to");
    let back = Backend::new(Kind::Sqlite, "back");
    fs::write(from.dir.join("all.yaml"), RESOURCES).unwrap();
    from.run("apply -f all.yaml");
    let all = "get ipp,bgppeer,bgpfilter,tier,gnp,np,gns,hep,felixconfig,bgpconfig,reservation,clusterinfo,kcc,nodestatus -A -o json --export";
    let carry = |a: &Backend, b: &Backend| {
        assert!(a.run("datastore migrate lock").contains("Datastore locked."));
        let out = a.command(&["datastore", "migrate", "export"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        fs::write(b.dir.join("export.yaml"), &out.stdout).unwrap();
        let said = b.run("datastore migrate import -f export.yaml");
        assert!(said.contains("successfully imported") && said.contains("[0]"), "{said}");
        let again = b.run("datastore migrate import -f export.yaml");
        assert!(again.contains("not empty") && again.contains("[2]"), "{again}");
        assert_eq!(a.run(all), b.run(all));
    };
    carry(&from, &to);
    carry(&to, &back);
    assert!(back.run("datastore migrate unlock").contains("Datastore unlocked."));
    let wrong = back.run("datastore migrate import -f all.yaml");
    assert!(wrong.contains("[2]"), "{wrong}");
    fs::write(back.dir.join("torn.yaml"), "===\n").unwrap();
    let torn = back.run("datastore migrate import -f torn.yaml");
    assert!(torn.contains("expected three sections"), "{torn}");

    // An export that was cut off, by a full disk for example, is none; and who writes it says so.
    let whole = fs::read_to_string(back.dir.join("export.yaml")).unwrap();
    let half = whole.trim_end().rsplit_once('\n').unwrap().0;
    fs::write(back.dir.join("half.yaml"), half).unwrap();
    let said = Backend::new(Kind::Sqlite, "half")
        .run(&format!("datastore migrate import -f {}", back.dir.join("half.yaml").display()));
    assert!(
        said.contains("cut off") && said.contains("nothing was written") && said.contains("[2]"),
        "{said}"
    );
    for words in [&["get", "ippools", "-o", "yaml"][..], &["datastore", "migrate", "export"], &["version"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        back.run("datastore migrate lock");
        let out = back.command(words).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && said.contains("No space left"), "{words:?}: {out:?}");
    }
}

/// Policies under the names of an old Calico, on the store that keeps them as they are written.
#[test]
fn policies_get_their_names() {
    for (kind, tag) in [(Kind::Sqlite, "names-sq"), (Kind::Etcd, "names-et")] {
        let backend = Backend::new(kind, tag);
        let policy = |name: &str, order: u32| {
            let text = format!(
                "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\n\
                 spec: {{order: {order}, selector: all()}}\n"
            );
            let said = backend.run(&format!("apply -f - < {text}"));
            assert!(said.ends_with("[0]\n"), "{said}");
        };
        for (name, order) in
            [("default.a", 1), ("b", 2), ("default.b", 2), ("c", 4), ("default.c", 3), ("plain", 5)]
        {
            policy(name, order);
        }
        let mut text = backend.run("datastore migrate-policy-names --dry-run");
        text += &backend.run("datastore migrate-policy-names");
        text += &backend.run("datastore migrate-policy-names");
        text += &backend.run("get gnp -o custom-columns=NAME,ORDER");
        let info = "apiVersion: projectcalico.org/v3\nkind: ClusterInformation\nmetadata: {name: default}\n\
                    spec: {calicoVersion: v3.31.2}\n";
        backend.run(&format!("apply -f - < {info}"));
        text += &backend.run("datastore migrate-policy-names");
        text += &backend.run("datastore migrate-policy-names --force --dry-run");
        insta::assert_snapshot!("policy_names", text);
    }
}

/// A policy of an old Calico answers to its name without the tier, as it does for Calico's own client.
#[test]
fn policies_of_an_old_calico_answer_to_both_names() {
    let apply = |backend: &Backend, kind: &str, name: &str, spec: &str| {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        );
        backend.run(&format!("apply -f - < {text}"))
    };
    let said: Vec<String> = [(Kind::Etcd, "old-et"), (Kind::Kubernetes, "old-ku")]
        .map(|(kind, tag)| {
            let backend = Backend::new(kind, tag);
            let gnp = |name: &str, order: u32| {
                apply(&backend, "GlobalNetworkPolicy", name, &format!("order: {order}, selector: all()"))
            };
            apply(&backend, "ClusterInformation", "default", "calicoVersion: v3.31.2");
            let first = gnp("one", 1);
            assert!(first.ends_with("[0]\n"), "{first}");
            apply(&backend, "ClusterInformation", "default", "calicoVersion: v3.32.0");
            assert!(gnp("one", 2).ends_with("[0]\n"));
            assert!(gnp("two", 3).ends_with("[0]\n"));
            let count = backend.run("get gnp -o custom-columns=ORDER");
            let named = backend.run("get gnp one -o jsonpath={.spec.order}");
            let labelled = backend.run("label gnp one a=b");
            assert!(labelled.ends_with("[0]\n"), "{labelled}");
            let names = backend.run("get gnp -o custom-columns=NAME");
            let stored = if kind == Kind::Etcd { "default.one" } else { "one" };
            assert!(
                names.lines().any(|l| l.trim() == stored) && names.lines().any(|l| l.trim() == "two"),
                "{names}"
            );
            let gone = backend.run("delete gnp one");
            assert!(gone.ends_with("[0]\n"), "{gone}");
            format!("{count}{named}{}", backend.run("get gnp -o custom-columns=NAME"))
        })
        .into();
    assert_eq!(said[0], said[1], "what a person sees is the same");
    assert!(!said[0].contains("one\n"), "{said:?}");
}

/// What a watch shows, line by line; ended when dropped.
struct Watching {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watching {
    fn new(backend: &Backend, args: &[&str]) -> Self {
        let mut child = backend.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next lines, without what the datastores differ in.
    fn next(&mut self, count: usize) -> Vec<String> {
        let lines = (&mut self.lines).take(count).map(Result::unwrap);
        lines.map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rows, documents and events as resources change.
fn watched(kind: Kind, tag: &str) {
    let backend = Backend::new(kind, tag);
    let pool = |name: &str, zone: &str, nat: bool| {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}, labels: {{zone: {zone}}}}}\n\
             spec: {{cidr: 10.{}.0.0/16, natOutgoing: {nat}}}\n",
            name.len()
        );
        let said = backend.run(&format!("apply -f - < {text}"));
        assert!(said.ends_with("[0]\n"), "{said}");
    };
    pool("a", "x", false);
    let mut rows = Watching::new(&backend, &["get", "ippools", "-w", "-o", "custom-columns=NAME,NAT"]);
    assert_eq!(rows.next(2), ["NAME NAT", "a false"]);
    let jsonpath = "jsonpath={.type} {.object.metadata.name}";
    let all = ["get", "ippools", "--output-watch-events", "-o", jsonpath];
    let mut events = Watching::new(&backend, &[&all[..], &["-w", "-l", "zone == 'x'"]].concat());
    assert_eq!(events.next(1), ["ADDED a"]);
    let mut yaml = Watching::new(&backend, &["get", "ippool", "a", "--watch", "-o", "yaml"]);
    assert_eq!(yaml.next(2), ["apiVersion: projectcalico.org/v3", "kind: IPPool"]);

    pool("bb", "x", true);
    pool("a", "x", true);
    assert_eq!(rows.next(2), ["bb true", "a true"]);
    pool("bb", "y", true);
    assert_eq!(rows.next(1), ["bb true"]);
    backend.run("delete ippool a");
    assert_eq!(rows.next(1), ["a true (deleted)"]);
    // What loses the label is gone for whoever asked for it.
    assert_eq!(events.next(4), ["ADDED bb", "MODIFIED a", "DELETED bb", "DELETED a"]);
    let mut seen = Vec::new();
    while seen.last().is_none_or(|l| l != "natOutgoing: true") {
        seen.extend(yaml.next(1));
    }
    assert!(seen.iter().any(|l| l == "---"), "{seen:?}");

    // Nothing of what is there already.
    let mut only = Watching::new(&backend, &[&all[..], &["--watch-only"]].concat());
    let (first, heard) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || first.send(only.next(1)));
    let told = brindle_integration::wait::until("a change is told", Duration::from_secs(30), || {
        pool("ccc", "x", true);
        pool("ccc", "x", false);
        heard.try_recv().map_err(|e| e.to_string())
    });
    assert!(["ADDED ccc", "MODIFIED ccc"].contains(&told.concat().as_str()), "{told:?}");
    reader.join().unwrap().unwrap();
}

#[test]
fn a_watch_shows_what_changes_on_sqlite() {
    watched(Kind::Sqlite, "watch-sqlite");
}

#[test]
fn a_watch_shows_what_changes_on_etcd() {
    watched(Kind::Etcd, "watch-etcd");
}

#[test]
fn a_watch_shows_what_changes_on_kubernetes() {
    watched(Kind::Kubernetes, "watch-kube");
}
