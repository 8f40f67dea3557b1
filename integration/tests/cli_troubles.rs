//! `brindlectl` where a cluster is not as it should be: one clear line that says what to do, exit code 2, and nothing lost.
//! What the store itself says of each is tested in `kube_store`; here is what a person sees.

use std::{fs, time::Duration};

use brindle_config::etcd::{EtcdSettings, EtcdStore};
use brindle_integration::{
    kube::{Access, ApiServer, Refusal, Rule},
    transcript::{Backend, Kind},
    wait::until,
};

fn pool(name: &str, octet: u8) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: 10.{octet}.0.0/16}}\n"
    )
}

/// Exit code 2, one line, with these words in it.
#[track_caller]
fn refused(said: &str, words: &[&str]) {
    let lines: Vec<&str> = said.lines().filter(|l| l.starts_with("brindlectl: ")).collect();
    assert!(said.ends_with("[2]\n") && lines.len() == 1, "{said}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} is not said: {said}");
    }
}

#[test]
fn a_kubeconfig_that_cannot_be_used_is_named() {
    let backend = Backend::new(Kind::Kubernetes, "trouble-config");
    let with = |config: &str| backend.run(&format!("get ippools --datastore kubernetes:{config}"));
    let said = with("/nonexistent/config");
    refused(&said, &["kubeconfig /nonexistent/config: No such file", "named by --datastore"]);
    assert_eq!(said.lines().nth(1).unwrap().matches("/nonexistent/config").count(), 1, "once: {said}");
    let garbage = backend.dir.join("garbage");
    fs::write(&garbage, "- just: a list\n").unwrap();
    refused(&with(&garbage.display().to_string()), &["garbage"]);

    let server = backend.kube.as_ref().unwrap();
    let old = backend.dir.join("old");
    server.add_token("old", "somebody", Access::All);
    server.write_kubeconfig(&old, "old");
    let old = old.display().to_string();
    assert!(with(&old).ends_with("[0]\n"));
    server.revoke_token("old");
    refused(&with(&old), &["401 Unauthorized"]);

    let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let rule = Rule {
        verbs: words(&["get", "list", "watch"]),
        groups: words(&["crd.projectcalico.org"]),
        resources: words(&["ippools"]),
        names: Vec::new(),
        urls: Vec::new(),
    };
    server.add_token("few", "somebody", Access::Rules(vec![rule]));
    let few = backend.dir.join("few");
    server.write_kubeconfig(&few, "few");
    let few = few.display().to_string();
    assert!(with(&few).ends_with("[0]\n"));
    let said = backend.run(&format!("get bgppeers --datastore kubernetes:{few}"));
    refused(&said, &["no right to list bgppeers", "add to its ClusterRole: {apiGroups:"]);
}

#[test]
fn a_cluster_without_definitions_is_told_what_to_apply() {
    let backend = Backend::new(Kind::Sqlite, "trouble-bare");
    let bare = ApiServer::new();
    let config = backend.dir.join("bare");
    bare.write_kubeconfig(&config, bare.admin_token());
    let line = format!("get ippools --datastore kubernetes:{}", config.display());
    refused(&backend.run(&line), &["kubectl apply -k deploy/crds"]);
}

#[test]
fn what_a_cluster_refuses_is_refused_and_the_rest_is_not_lost() {
    let backend = Backend::new(Kind::Kubernetes, "trouble-server");
    let server = backend.kube.as_ref().unwrap();
    let folder = backend.dir.join("folder");
    fs::create_dir(&folder).unwrap();
    for (n, name) in ["one", "three", "two"].iter().enumerate() {
        fs::write(folder.join(format!("{name}.yaml")), pool(name, 10 + n as u8)).unwrap();
    }

    server.read_only(true);
    refused(&backend.run("apply -f folder"), &["IPPool(one)"]);
    assert!(!backend.run("get ippools -o name").contains("ippool/"), "nothing is written");
    server.read_only(false);

    // The second write fails; what was written is named, and the same line completes the rest.
    let refusal = |times| Refusal {
        verb: "create".into(),
        resource: "ippools".into(),
        code: 400,
        retry_after: None,
        times,
    };
    let first = backend.run("apply -f folder/one.yaml");
    assert!(first.ends_with("[0]\n"), "{first}");
    server.refuse(refusal(1));
    let said = backend.run("apply -f folder");
    assert!(said.ends_with("[2]\n") && said.contains("IPPool(three)"), "{said}");
    // One that asks to come again a second later is asked again.
    server.refuse(Refusal { code: 429, retry_after: Some(1), ..refusal(1) });
    let said = backend.run("apply -f folder");
    assert!(said.ends_with("[0]\n"), "{said}");
    let names = backend.run("get ippools -o name");
    assert!(["one", "two", "three"].iter().all(|n| names.contains(&format!("ippool/{n}\n"))), "{names}");

    // Larger than a cluster takes.
    let large = pool("large", 99)
        .replace("{name: large}", &format!("{{name: large, annotations: {{x: {}}}}}", "y".repeat(4 << 20)));
    fs::write(backend.dir.join("large.yaml"), large).unwrap();
    let said = backend.run("apply -f large.yaml");
    assert!(said.len() < 4096 && said.ends_with("[2]\n"), "{}", said.get(..4096).unwrap_or(&said));
    assert!(said.contains("large"), "{said}");

    // Nobody there, and there again.
    server.stop();
    let said = backend.run("get ippools");
    let words = ["datastore unavailable", "Connection refused", "is the API server running there"];
    refused(&said, &words);
    refused(
        &said,
        &["named by BRINDLE_DATASTORE", "Ask it: kubectl --kubeconfig DIR/kubeconfig cluster-info"],
    );
    server.resume();
    until("it answers again", Duration::from_secs(30), || {
        let said = backend.run("get ippools -o name");
        if said.contains("ippool/two") { Ok(()) } else { Err(said) }
    });
}

#[test]
fn a_datastore_that_is_not_there_is_told_with_what_to_type() {
    let backend = Backend::new(Kind::Sqlite, "trouble-nobody");
    for line in ["get nodes", "status", "apply -f -"] {
        let said = backend.run(&format!("{line} --datastore etcd:http://127.0.0.1:1 < {}", pool("x", 1)));
        refused(&said, &["etcd http://127.0.0.1:1", "Connection refused", "(named by --datastore)"]);
        refused(&said, &["Ask it: etcdctl --endpoints=http://127.0.0.1:1 endpoint health"]);
    }
    let said = backend.run("get nodes --datastore sqlite:none.db");
    refused(
        &said,
        &["there is no datastore none.db (named by --datastore)", "name another with --datastore URL"],
    );
    refused(&said, &["--lab", "brindle-node run --datastore sqlite:none.db"]);
    let config = "apiVersion: projectcalico.org/v3\nkind: CalicoAPIConfig\nmetadata: {}\n\
                  spec: {etcdEndpoints: http://127.0.0.1:1}\n";
    fs::write(backend.dir.join("calico.cfg"), config).unwrap();
    refused(
        &backend.run("-c calico.cfg get nodes"),
        &["Connection refused", "The address is that of calico.cfg"],
    );
}

/// A file that was edited until it was wrong, and is to go as it came.
#[test]
fn what_a_file_names_is_deleted_whatever_else_it_says() {
    let backend = Backend::new(Kind::Sqlite, "trouble-delete");
    let set = "---\napiVersion: projectcalico.org/v3\nkind: NetworkSet\nmetadata: {name: s}\nspec: {nets: [10.0.0.0/8]}\n";
    fs::write(backend.dir.join("x.yaml"), pool("one", 10) + set).unwrap();
    assert!(backend.run("apply -n blue -f x.yaml").ends_with("[0]\n"));
    let wrong =
        (pool("one", 10) + set).replace("10.10.0.0/16", "nonsense").replace("10.0.0.0/8", "10.0.0.0/99");
    fs::write(backend.dir.join("x.yaml"), &wrong).unwrap();
    let said = backend.run("apply -n blue -f x.yaml");
    assert!(said.ends_with("[2]\n") && said.contains("2 problems"), "{said}");
    let said = backend.run("delete -n blue -f x.yaml");
    assert!(said.contains("deleted 2 resource(s)") && said.ends_with("[0]\n"), "{said}");
    assert!(!backend.run("get ippools,networksets -A -o name").contains("/one"), "{said}");
    // What it does not name cannot be deleted.
    fs::write(backend.dir.join("x.yaml"), wrong.replace("{name: s}", "{}")).unwrap();
    let said = backend.run("delete -f x.yaml");
    assert!(said.ends_with("[2]\n") && said.contains("x.yaml:8:11: document 2: metadata.name"), "{said}");
}

#[test]
fn an_etcd_that_forgot_its_history_costs_nobody_anything() {
    let backend = Backend::new(Kind::Etcd, "trouble-compact");
    fs::write(backend.dir.join("one.yaml"), pool("one", 10)).unwrap();
    assert!(backend.run("apply -f one.yaml").ends_with("[0]\n"));
    // Written down by somebody before history was forgotten, and changed by another meanwhile.
    let out = backend.command(&["get", "ippools", "one", "-o", "yaml"]).output().unwrap();
    let old = String::from_utf8(out.stdout).unwrap();
    assert!(old.contains("resourceVersion:"), "{old}");
    fs::write(backend.dir.join("old.yaml"), old.replace("10.10.0.0/16", "10.10.0.0/16\n  disabled: true"))
        .unwrap();
    for n in 0..5 {
        fs::write(backend.dir.join("two.yaml"), pool("two", 20 + n)).unwrap();
        backend.run("delete ippools two");
        let said = backend.run("apply -f two.yaml");
        assert!(said.ends_with("[0]\n"), "{said}");
    }
    let one = pool("one", 10).replace("/16", "/16, natOutgoing: true");
    fs::write(backend.dir.join("one.yaml"), one).unwrap();
    assert!(backend.run("apply -f one.yaml").ends_with("[0]\n"));
    let url = backend.url.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let settings = EtcdSettings::parse(url.trim_start_matches("etcd:"), |_| None).unwrap();
        EtcdStore::new(settings).compact().await.unwrap();
    });
    let names = backend.run("get ippools -o name");
    assert!(names.contains("ippool/one\n") && names.contains("ippool/two\n"), "{names}");
    let said = backend.run("replace -f old.yaml");
    refused(&said, &["nothing was written"]);
    assert!(said.contains("IPPool(one) was changed") && said.contains("read it again"), "{said}");
    let now = backend.run("get ippools one -o yaml");
    assert!(now.contains("natOutgoing: true") && !now.contains("disabled: true"), "{now}");
    let said = backend.run("delete ippools two");
    assert!(said.ends_with("[0]\n"), "{said}");
}

#[test]
fn versions_and_words_that_are_unknown_are_named_with_their_place() {
    let backend = Backend::new(Kind::Sqlite, "trouble-words");
    let apply = |text: &str| backend.run(&format!("apply -f - < {text}"));
    for (text, words) in [
        (pool("x", 1).replace("org/v3", "org/v9"), &["standard input:1", "v9", "v3"][..]),
        (pool("x", 1).replace("IPPool", "IPPol"), &["standard input:2", "did you mean IPPool?"]),
        (
            pool("x", 1).replace("10.1.0.0/16", "10.1.0.0/16, ipipMode: alwys"),
            &["ipipMode", "did you mean Always?"],
        ),
        (pool("x", 1).replace("10.1.0.0/16", "10.1.0.0/99"), &["standard input:4", "spec.cidr"]),
        (format!("{}---\n{}", pool("x", 1), "kind: [\n"), &["standard input:"]),
    ] {
        let said = apply(&text);
        assert!(said.ends_with("[2]\n"), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not said: {said}");
        }
    }
    assert!(!backend.run("get ippools -o name").contains("ippool/"), "nothing is written");
    // An unknown field is kept, with a suggestion.
    let said = apply(&pool("x", 1).replace("10.1.0.0/16", "10.1.0.0/16, natOutging: true"));
    assert!(said.contains("did you mean natOutgoing?") && said.ends_with("[0]\n"), "{said}");
}
