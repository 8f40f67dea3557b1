//! `get`, `apply` and their siblings over the real binary and a real SQLite store: what a person sees, to the letter.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use brindle_config_core::{Key, Kind, store::Expect};

/// A folder with a datastore; removed at the end.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("brindlectl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir }
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_brindlectl"));
        c.args(args)
            .current_dir(&self.dir)
            .env("BRINDLE_DATASTORE", format!("sqlite:{}", self.dir.join("t.db").display()))
            .env_remove("EDITOR")
            .env_remove("VISUAL");
        c
    }

    /// The command, its exit code and everything it said.
    fn run(&self, line: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        told(line, &self.command(&args).output().unwrap(), &self.dir)
    }

    fn with(&self, args: &[&str]) -> String {
        told(&args.join(" "), &self.command(args).output().unwrap(), &self.dir)
    }

    /// Writes something into the datastore that the command would not.
    fn change_stored(&self, pool: &str, from: &str, to: &str) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        let store = brindle_config::open(&format!("sqlite:{}", self.dir.join("t.db").display())).unwrap();
        let key = Key::new(Kind::IpPool, None, pool);
        let old = runtime.block_on(store.get(&key)).unwrap().value.to_string();
        assert!(old.contains(from), "{old}");
        let new = serde_json::from_str(&old.replacen(from, to, 1)).unwrap();
        runtime.block_on(store.put(&key, new, Expect::Any)).unwrap();
    }

    fn stdin(&self, line: &str, text: &str) -> String {
        let args: Vec<&str> = line.split_whitespace().collect();
        let mut child = self
            .command(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        told(line, &child.wait_with_output().unwrap(), &self.dir)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn told(line: &str, out: &Output, dir: &Path) -> String {
    let text = format!(
        "$ brindlectl {line}\n{}{}[{}]\n",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
        out.status.code().unwrap_or(-1)
    );
    text.replace(&dir.display().to_string(), "DIR")
}

const POOLS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: blue, labels: {zone: a}}
spec: {cidr: 10.1.0.0/16, ipipMode: Always, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: green}
spec: {cidr: 10.2.0.0/16, futureField: {kept: true}}
";

const NODE: &str = "\
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: node1}
spec: {bgp: {ipv4Address: 10.77.1.1/24}}
";

#[test]
fn resources_go_in_and_come_out() {
    let p = Place::new("inout");
    p.file("pools.yaml", POOLS);
    p.file("more/node.yaml", NODE);
    let screens = [
        p.run("get ippools"),
        p.run("create -f pools.yaml"),
        p.run("apply -f pools.yaml -f more"),
        p.run("get ippools"),
        p.run("get pool -o wide"),
        p.run("get nodes -o wide"),
        p.run("get ipp,node -o name"),
        p.run("get ippool green -o yaml"),
        p.run("get ippools -o custom-columns=NAME,CIDR,IPIPMODE"),
        p.run("get ippools -o custom-columns=POOL:.metadata.name,MODE:.spec.ipipMode,NO:.spec.nothing"),
        p.with(&[
            "get",
            "ippools",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.spec.cidr}{\"\\n\"}{end}",
        ]),
        p.run("get ippools -l zone=='a'"),
        p.run("get -f pools.yaml -o name"),
        p.run("get ippool blue -o json --export"),
    ];
    insta::assert_snapshot!(screens.join("\n"));
}

#[test]
fn changes_are_checked_and_told() {
    let p = Place::new("changes");
    p.file("pools.yaml", POOLS);
    let changed = POOLS.replace("natOutgoing: true", "natOutgoing: false");
    p.file("changed.yaml", &changed);
    let editor = p.file("editor", "#!/bin/sh\nsed -i 's/natOutgoing: true/natOutgoing: false/' \"$1\"\n");
    let edit = |line: &str| {
        let args: Vec<&str> = line.split_whitespace().collect();
        let out = p.command(&args).env("EDITOR", format!("sh {}", editor.display())).output().unwrap();
        told(line, &out, &p.dir)
    };
    let screens = [
        p.run("apply -f pools.yaml"),
        p.run("diff -f pools.yaml"),
        p.run("diff -f changed.yaml"),
        p.run("apply --dry-run -f changed.yaml"),
        p.with(&["patch", "ippool", "blue", "-p", r#"{"spec": {"disabled": true}}"#]),
        p.with(&[
            "patch",
            "ippool",
            "blue",
            "-t",
            "json",
            "-p",
            r#"[{"op": "remove", "path": "/spec/disabled"}]"#,
        ]),
        p.with(&["patch", "ippool", "blue", "--dry-run", "-p", r#"{"spec": {"natOutgoig": true}}"#]),
        p.with(&["patch", "ippool", "blue", "-p", r#"{"spec": {"cidr": "10.9.0.0/16"}}"#]),
        p.with(&["patch", "ippool", "blue", "-p", r#"{"spec": {"ipipMode": "Sometimes"}}"#]),
        p.with(&["patch", "ippool", "blue", "-t", "json", "-p", r#"{"spec": {}}"#]),
        p.run("label ippool blue zone=b"),
        p.run("label ippool blue zone=b --overwrite"),
        p.run("label ippool blue zone --remove"),
        p.run("label ippool blue zone --remove"),
        edit("edit ippool blue"),
        edit("edit ippool blue"),
        p.run("delete ippool blu"),
        p.run("delete ippool"),
        p.run("delete --dry-run ippool blue"),
        p.run("delete ippool blue"),
        p.run("delete ippool blue --skip-not-exists"),
        p.run("get ippools -o name"),
    ];
    insta::assert_snapshot!(screens.join("\n"));
}

#[test]
fn one_wrong_document_keeps_the_others_out() {
    let p = Place::new("wrong");
    let wrong = format!("{POOLS}---\napiVersion: projectcalico.org/v3\nkind: IPPol\nmetadata: {{name: x}}\n");
    p.file("wrong.yaml", &wrong);
    let overlap = POOLS.replace("10.2.0.0/16", "10.1.128.0/17");
    p.file("overlap.yaml", &overlap);
    p.file("pools.yaml", POOLS);
    std::fs::create_dir(p.dir.join("empty")).unwrap();
    let screens = [
        p.run("apply -f wrong.yaml"),
        p.run("apply -f overlap.yaml"),
        p.run("get ippools -o name"),
        p.run("apply --continue -f wrong.yaml"),
        p.run("get ippools -o name"),
        p.run("create -f pools.yaml"),
        p.run("create --skip-exists -f pools.yaml"),
        p.stdin("replace -f -", &NODE.replace("node1", "node9")),
        p.stdin("validate -f -", "spec: [\n"),
        p.run("validate -f pools.yaml"),
        p.run("validate -f empty"),
        p.run("apply -f nothing.yaml"),
        p.run("get ippol"),
        p.run("get ippools -o yml"),
        p.run("get ippools -o custom-columns=NAM"),
        p.run("get ippool bleu"),
        p.run("version -o wide"),
        p.stdin(
            "apply -f -",
            "apiVersion: projectcalico.org/v3\nkind: BlockAffinity\nmetadata: {name: n-10-0-0-0-26}\n\
             spec: {state: confirmed, node: n, cidr: 10.0.0.0/26}\n",
        ),
    ];
    insta::assert_snapshot!(screens.join("\n"));
}

#[test]
fn a_stale_revision_is_refused() {
    let p = Place::new("stale");
    p.stdin("apply -f -", NODE);
    let read = p.command(&["get", "node", "node1", "-o", "yaml"]).output().unwrap();
    let text = String::from_utf8(read.stdout).unwrap();
    assert!(p.run("label node node1 a=b").contains("[0]"));
    let answer = p.stdin("apply -f -", &text);
    assert!(answer.contains("update conflict: Node(node1) was changed since revision"), "{answer}");
    assert!(answer.contains("[2]"), "{answer}");
    let fresh = p.command(&["get", "node", "node1", "-o", "yaml"]).output().unwrap();
    assert!(
        p.stdin("replace -f -", &String::from_utf8(fresh.stdout).unwrap()).contains("Successfully replaced")
    );
}

#[test]
fn what_was_deleted_meanwhile_is_not_made_again_in_silence() {
    let p = Place::new("gone");
    p.stdin("apply -f -", NODE);
    let read = p.command(&["get", "node", "node1", "-o", "yaml"]).output().unwrap();
    let text = String::from_utf8(read.stdout).unwrap();
    assert!(p.run("delete node node1").contains("[0]"));
    let answer = p.stdin("apply -f -", &text);
    assert!(answer.contains("warning: Node(node1), by metadata.resourceVersion"), "{answer}");
    assert!(answer.contains("Successfully applied 1") && answer.contains("[0]"), "{answer}");
    assert!(!p.stdin("apply -f -", NODE).contains("warning"));
}

/// Who reads standard error may have gone, and the disk be full that it goes to.
#[test]
fn nobody_need_read_standard_error() {
    let p = Place::new("unread");
    let unknown =
        |n: u32| format!("---\n{}", NODE.replace("node1}", &format!("n{n}}}")).replace("bgp:", "bpg:"));
    p.file("many.yaml", &(0..50).map(unknown).collect::<String>());
    p.file(
        "wrong.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: x}\nspec: {cidr: 7}\n",
    );
    let code = |line: &str, stderr: Stdio| {
        let args: Vec<&str> = line.split_whitespace().collect();
        let child = p.command(&args).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        child.wait_with_output().unwrap().status.code()
    };
    for (line, expected) in [
        ("apply -f many.yaml", 0),
        ("validate -f wrong.yaml", 2),
        ("apply -f wrong.yaml", 2),
        ("delete -f wrong.yaml", 2),
        ("patch node n1 -p {\"spec\":{\"bpgg\":1}}", 0),
        ("get ippool,bgppeer", 0),
        ("get nodes -o nonsense", 2),
        ("nonsense", 2),
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(code(line, full.into()), Some(expected), "full: {line}");
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(code(line, writer.into()), Some(expected), "closed: {line}");
    }
}

#[test]
fn a_namespace_from_the_command_line_is_part_of_what_resources_are_called() {
    let p = Place::new("namespace");
    let set = |more: &str| {
        format!(
            "---\napiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {{name: a{more}}}\nspec: {{nets: []}}\n"
        )
    };
    p.file("two.yaml", &(set("") + &set(", namespace: default")));
    p.file("one.yaml", &(set("") + &set(", namespace: shop")));
    let answer = p.run("apply -n shop -f two.yaml");
    assert!(answer.contains("Successfully applied 2") && answer.contains("[0]"), "{answer}");
    assert_eq!(p.run("get networksets -A -o name").matches("/a").count(), 2);
    assert!(p.run("delete -n shop -f two.yaml").contains("Successfully deleted 2"));
    let answer = p.run("apply -n shop -f one.yaml");
    assert!(answer.contains("was given before, at one.yaml:") && answer.contains("[2]"), "{answer}");
    assert!(!p.run("get networksets -A -o name").contains("/a"), "nothing was written");
    let answer = p.run("apply -f two.yaml");
    assert!(answer.contains("was given before") && answer.contains("[2]"), "{answer}");
}

#[test]
fn an_empty_editor_is_none() {
    let p = Place::new("editor");
    p.stdin("apply -f -", NODE);
    // `vi` as this test has it.
    p.file("bin/vi", "#!/bin/sh\nsed -i 's/10.77.1.1/10.77.1.9/' \"$1\"\n");
    let vi = p.dir.join("bin/vi");
    std::fs::set_permissions(&vi, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", p.dir.join("bin").display(), std::env::var("PATH").unwrap());
    let edit = |visual: &str, editor: &str| {
        let mut command = p.command(&["edit", "node", "node1"]);
        let out = command.env("PATH", &path).env("VISUAL", visual).env("EDITOR", editor).output().unwrap();
        told("edit", &out, &p.dir)
    };
    let answer = edit("", " ");
    assert!(answer.contains("Successfully edited") && answer.contains("[0]"), "{answer}");
    let answer = edit("", "sed -i s/10.77.1.9/10.77.1.8/");
    assert!(answer.contains("[0]") && p.run("get node node1 -o yaml").contains("10.77.1.8"), "{answer}");
}

#[test]
fn a_migration_comes_from_standard_input_too() {
    let p = Place::new("import");
    p.stdin("apply -f -", NODE);
    assert!(p.run("datastore migrate lock").contains("[0]"));
    let text =
        String::from_utf8(p.command(&["datastore", "migrate", "export"]).output().unwrap().stdout).unwrap();
    let other = format!("sqlite:{}", p.dir.join("other.db").display());
    let answer = p.stdin(&format!("datastore migrate import -f - --datastore {other}"), &text);
    assert!(answer.contains("successfully imported: 2 resources") && answer.contains("[0]"), "{answer}");
    let answer = p.stdin(&format!("datastore migrate import -f - --datastore {other}"), "nonsense");
    assert!(answer.contains("standard input") && answer.contains("[2]"), "{answer}");
}

const POLICIES: &str = "\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: out}
spec: {tier: low, selector: all(), egress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: both, namespace: shop}
spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}
---
apiVersion: projectcalico.org/v3
kind: StagedNetworkPolicy
metadata: {name: none, namespace: shop}
spec: {selector: all()}
";
const TIER: &str =
    "---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {name: low}\nspec: {order: 7}\n";

#[test]
fn tiers_hold_policies_and_are_held_by_them() {
    let p = Place::new("tiers");
    p.file("policies.yaml", POLICIES);
    p.file("all.yaml", &format!("{POLICIES}{TIER}"));
    let screens = [
        p.run("apply -f policies.yaml"),
        p.run("get gnp,np,tiers -A -o name"),
        p.run("apply -f all.yaml"),
        p.run("apply -f policies.yaml"),
        p.with(&[
            "get",
            "gnp,np,snp",
            "-A",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name} {.metadata.labels} {.spec.types}{\"\\n\"}{end}",
        ]),
        p.with(&["patch", "gnp", "out", "-p", r#"{"spec": {"tier": "lower"}}"#]),
        p.run("delete tier low"),
        p.run("delete --dry-run tier low"),
        p.run("delete tier default"),
        p.with(&["patch", "gnp", "out", "-p", r#"{"spec": {"tier": "default"}}"#]),
        p.run("get gnp out -o yaml --export"),
        p.run("apply -f policies.yaml"),
        p.run("delete -f all.yaml"),
        p.stdin("create -f -", &TIER.replace("low", "l.ow")),
        p.stdin("validate -f -", &POLICIES.replace("name: out", "name: low.out.side")),
    ];
    insta::assert_snapshot!(screens.join("\n"));
}

#[test]
fn what_go_leaves_out_is_read_and_what_cannot_be_read_is_named() {
    let p = Place::new("nulls");
    let pool = |name: &str, cidr: &str, more: &str| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: {cidr}{more}}}\n"
        )
    };
    p.stdin("apply -f -", &pool("first", "10.1.0.0/16", ", blockSize: 0"));
    p.change_stored("first", r#""cidr":"#, r#""allowedUses":null,"ipipMode":null,"cidr":"#);
    let screens =
        [p.stdin("apply -f -", &pool("second", "10.1.128.0/17", "")), p.run("label ippool first zone=a")];
    p.change_stored("first", r#""cidr":"#, r#""natOutgoing":"perhaps","cidr":"#);
    let more = [p.stdin("apply -f -", &pool("third", "10.3.0.0/16", ""))];
    insta::assert_snapshot!(screens.iter().chain(&more).cloned().collect::<Vec<_>>().join("\n"));
}
