//! Addresses of another IPAM plugin: what it is asked, and that nothing stays with it.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::stage::{Host, Ns, content};

/// A `host-local` that writes down how it is called. What it does for an ADD is given as a script.
fn played(host: &Host, add: &str) -> Value {
    let program = host.folder.0.join("host-local");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >> {0}.calls\nif [ $CNI_COMMAND = ADD ]; then\n{add}\nfi\n",
        program.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut conf = host.conf();
    conf["ipam"] = json!({ "type": "host-local" });
    conf
}

fn calls(host: &Host) -> String {
    std::fs::read_to_string(host.folder.0.join("host-local.calls")).unwrap().replace('\n', " ")
}

#[test]
fn a_delegate_whose_add_failed_is_asked_to_give_back() {
    let full = r#"echo '{"code":999,"msg":"full"}'; exit 1"#;
    let none = r#"echo '{"cniVersion":"1.0.0","ips":[]}'"#;
    for (name, add, code) in [("delfull", full, 999), ("delnone", none, 110), ("delodd", "echo odd", 6)] {
        let (host, pod) = (Host::new(name), Ns::new(name));
        let conf = played(&host, add);
        let agent = host.agent(content);
        assert_eq!(host.plugin("ADD", "c1", &pod.path(), &conf).code(), code);
        assert_eq!(calls(&host), "ADD DEL ", "{name}");
        assert_eq!(agent.calls(), Vec::<&str>::new(), "nothing was asked of the agent");
    }
}
