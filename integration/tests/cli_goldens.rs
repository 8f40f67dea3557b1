//! What `cli_stores` and `cli_agents` leave out: every command that has an answer as JSON, export and import, splitting and
//! releasing, on each kind of datastore. And the account: every command of brindlectl's own reference has a transcript of
//! the real binary on all three, or stands in a list with the reason why not. Needs Debian's etcd-server.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use brindle_integration::{
    bins::bin,
    transcript::{Backend, Kind},
};

const RESOURCES: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: blue, labels: {zone: a}}
spec: {cidr: 10.1.0.0/16, ipipMode: Always, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {asNumber: 64999}
---
apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {name: node1-eth0}
spec: {node: node1, interfaceName: eth0, expectedIPs: [192.0.2.7]}
";

const LINES: &[&str] = &[
    "validate -f all.yaml -o json",
    "create -f all.yaml -o json",
    "apply -f all.yaml -o json",
    "apply -f bad.yaml -o json",
    "replace -f all.yaml -o json",
    "diff -f changed.yaml -o json",
    r#"patch ippool blue -p '{"spec": {"disabled": true}}' -o json"#,
    "label ippool blue zone=b --overwrite -o json",
    "edit ippool blue -o json",
    "get ippools -o json --export",
    "get ippools -o yaml --export",
    "get ippol -o json",
    "ipam show -o json",
    "ipam show --show-configuration -o json",
    "ipam show --ip 10.1.0.9 -o json",
    "ipam check -o json",
    "ipam why 10.1.0.9",
    "ipam why 10.1.0.9 -o json",
    "ipam configure --max-blocks-per-host=20 -o json",
    "ipam reserve 10.1.0.0/30 10.1.255.255",
    "ipam reserve 10.1.0.0/30 -o json",
    "ipam reserve --remove 10.1.255.255",
    "ipam reserve 10.1.0.0/99",
    "ipam release --ip 10.1.0.9",
    "ipam release --ip 10.1.0.9 -o json",
    "ipam release --from-report none.json",
    "ipam split 2 --name blue",
    "ipam split 3 --name blue",
    "policy trace 192.0.2.9 node1-eth0:22 -o json",
    "policy trace 192.0.2.9 node1-eht0:22",
    "datastore migrate-policy-names --dry-run",
    "datastore migrate-policy-names -o json",
    "datastore migrate lock -o json",
    "datastore migrate export",
    "ipam split 2 --name blue",
    "ipam split 2 --name blue-split -o json",
    "get ippools",
    "get ippools -l cidr=big,!old",
    "get ippool split-blue-0 none split-blue-1",
    "get ippool split-blue-0 none -o json",
    "get ippools -o custom-columns=NAME:",
    "get ippools -o custom-columns=NAME,COLOUR",
    "get tiers,np -n nowhere",
    "label ippool/split-blue-0 size=half old=no",
    "label ippool/split-blue-0 size=whole old=no",
    "label ippool/split-blue-0 size old --remove",
    "label ippool/split-blue-0",
    r#"patch ippool/split-blue-0 -p '{"spec": {"ipipMode": "Alwys"}}'"#,
    "patch ippool/split-blue-0 -p ''",
    r#"patch ippool/split-blue-0 -t json -p '[{"op": "remove", "path": "/spec/none"}]'"#,
    "apply -f twice.yaml --dry-run",
    "apply -f twice.yaml --dry-run --continue",
    "apply -f foreign.yaml",
    "validate -f all.yaml -n shop --config none.cfg",
    "-n nowhere get np",
    "-l debug -o name get ippools",
    "--context prod get ippools -o yaml --datastore sqlite:none.db",
    "--lab none get ippools",
    "--datastore none get ippools",
    "get ippools --datastore etcd:http://127.0.0.1:1",
    "--datastore etcd:http://127.0.0.1:1 status -o json",
    "get ippools --datastore kubernetes:http://127.0.0.1:1",
    "get ippools --datastore kubernetes:none",
    "get ippools -c none.cfg",
    "create -f all.yaml --datastore sqlite:none/x.db",
    "ipam check -o report.json",
    "ipam release --from-report report.json",
    "ipam check -o json=",
    "ipam show --ip 10.1.0",
    "version --poll 0",
    "node run --ip 192.0.2.1",
    "convert -f all.yaml",
    "datastore migrate import -f all.yaml",
    "datastore migrate import -f torn.yaml -o json",
    "datastore migrate unlock -o json",
    "delete ippool blue -o json",
    "delete hep node1-eth0 -o json",
    "version -o json",
    "version --all -o json",
    "status -o json",
    "route a b -o json",
    "cluster diags -o json",
    "bgp --all summary -o json",
    "status -o wide",
    "get ippools -o go-template={{.kind}}",
    "node status --socket none.sock",
    "status --socket none.sock",
    "bgp --admin-socket none.sock summary",
    "man gett",
    "policy trace 192.0.2.9 node1-eth0:99999",
    "stauts",
    "ipam shwo",
    "get",
];

fn transcript(backend: &Backend) -> String {
    let write = |name: &str, text: &str| fs::write(backend.dir.join(name), text).unwrap();
    write("all.yaml", RESOURCES);
    write("changed.yaml", &RESOURCES.replace("natOutgoing: true", "natOutgoing: false"));
    write("bad.yaml", &RESOURCES.replace("10.1.0.0/16", "10.1.0.0/61"));
    write("torn.yaml", "===\n");
    let first = RESOURCES.split("---").next().unwrap();
    write("twice.yaml", &format!("{RESOURCES}---\n{first}"));
    write("foreign.yaml", "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: x}\n");
    LINES.iter().map(|line| backend.run(line) + "\n").collect()
}

#[test]
fn every_form_is_the_same_on_sqlite() {
    insta::assert_snapshot!("forms", transcript(&Backend::new(Kind::Sqlite, "forms-sqlite")));
}

#[test]
fn every_form_is_the_same_on_etcd() {
    insta::assert_snapshot!("forms", transcript(&Backend::new(Kind::Etcd, "forms-etcd")));
}

#[test]
fn every_form_is_the_same_on_kubernetes() {
    insta::assert_snapshot!("forms", transcript(&Backend::new(Kind::Kubernetes, "forms-kube")));
}

/// Commands without a transcript on each datastore, and why.
const WITHOUT: &[(&str, &str)] = &[
    ("lab up", "makes its own datastore: lab*.rs"),
    ("lab status", "a lab has its own datastore: lab.rs"),
    ("lab ping", "a lab has its own datastore: lab.rs"),
    ("lab exec", "a lab has its own datastore: lab.rs"),
    ("lab break kill", "a lab has its own datastore: lab_faults.rs"),
    ("lab break link", "a lab has its own datastore: lab_faults.rs"),
    ("lab break partition", "a lab has its own datastore: lab_faults.rs"),
    ("lab heal", "a lab has its own datastore: lab_faults.rs"),
    ("lab add node", "a lab has its own datastore: lab.rs"),
    ("lab list", "a lab has its own datastore: lab.rs"),
    ("lab down", "a lab has its own datastore: lab.rs"),
    ("bgp monitor", "goes on until it is ended: bgp_screens.rs"),
    ("node diags", "reads this machine and its agent, no datastore: cli_cluster.rs"),
    ("node checksystem", "reads this machine, no datastore: ctl's own tests"),
    ("completion", "reads no datastore: ctl/tests/generated.rs"),
];

/// Transcripts with the call that holds them against a datastore; `KIND` stands for its kind.
const TRANSCRIPTS: &[(&str, &str, &str)] = &[
    (
        "cli_goldens__forms.snap",
        include_str!("cli_goldens.rs"),
        r#""forms", transcript(&Backend::new(Kind::KIND"#,
    ),
    (
        "cli_stores__commands.snap",
        include_str!("cli_stores.rs"),
        r#""commands", transcript(&Backend::new(Kind::KIND"#,
    ),
    ("cli_agents__agents.snap", include_str!("cli_agents.rs"), r#""agents", transcript(Kind::KIND"#),
    ("cli_agents__skew.snap", include_str!("cli_agents.rs"), r#""skew", skewed(Kind::KIND"#),
    (
        "cli_agents__the_cluster_is_bundled_on_sqlite.snap",
        include_str!("cli_agents.rs"),
        "bundled(Kind::KIND",
    ),
];

/// Commands that do something: those of the reference that have no commands of their own.
fn commands() -> Vec<String> {
    let out = Command::new(bin("brindlectl")).arg("reference").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let all: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("##"))
        .filter_map(|l| l.split_once("brindlectl ").map(|(_, c)| c))
        .collect();
    let parent =
        |c: &&&str| all.iter().any(|other| other.strip_prefix(**c).is_some_and(|r| r.starts_with(' ')));
    all.iter().filter(|c| !parent(c)).map(|c| (*c).to_owned()).collect()
}

/// The lines typed in all transcripts that are held against every datastore.
fn typed() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let mut lines = Vec::new();
    for (file, source, call) in TRANSCRIPTS {
        for kind in ["Sqlite", "Etcd", "Kubernetes"] {
            let call = call.replace("KIND", kind);
            assert!(source.contains(&call), "{file} is not held against {kind}: no {call}");
        }
        let text = fs::read_to_string(folder.join(file)).unwrap();
        lines.extend(text.lines().filter_map(|l| l.strip_prefix("$ brindlectl ")).map(str::to_owned));
    }
    lines
}

#[test]
fn every_command_and_every_form_has_a_transcript_on_each_datastore() {
    let (commands, typed) = (commands(), typed());
    assert!(commands.len() > 50, "{commands:?}");
    // `bgp --node n2 rib` types the command `bgp rib`.
    let words = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    let types = |line: &str, command: &str| {
        let line = words(line);
        let mut wanted = command.split(' ').peekable();
        let Some(first) = wanted.next() else { return false };
        let mut rest = line.iter();
        rest.next().is_some_and(|w| w == first) && wanted.all(|w| rest.any(|l| l == w))
    };
    let without: BTreeSet<&str> = WITHOUT.iter().map(|(c, _)| *c).collect();
    let mut missing = Vec::new();
    for command in &commands {
        let shown = typed.iter().any(|line| types(line, command));
        match (shown, without.contains(command.as_str())) {
            (false, false) => missing.push(command.as_str()),
            (true, true) => panic!("{command} has a transcript; take it from WITHOUT"),
            _ => {}
        }
    }
    assert!(missing.is_empty(), "no transcript on every datastore: {missing:?}");
    let gone: Vec<_> = without.iter().filter(|c| !commands.iter().any(|o| o == *c)).collect();
    assert!(gone.is_empty(), "in WITHOUT, and no command: {gone:?}");

    // The forms as brindlectl names them when it is asked for one that is none.
    let out = Command::new(bin("brindlectl")).args(["get", "-o", "?"]).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    let list = said.split("expected ").nth(1).and_then(|l| l.lines().next()).expect("the forms");
    let forms: Vec<&str> = list
        .split([',', ' '])
        .map(|f| f.split('=').next().unwrap_or_default())
        .filter(|f| !f.is_empty() && !["or", ".."].contains(f))
        .collect();
    assert!(forms.len() >= 9, "{forms:?}");
    for form in forms.iter().filter(|f| **f != "table") {
        let shown = |l: &String| l.contains(&format!("-o {form}")) || l.contains(&format!("-o '{form}"));
        assert!(typed.iter().any(|l| l.starts_with("get ") && shown(l)), "no transcript of get -o {form}");
    }
}
