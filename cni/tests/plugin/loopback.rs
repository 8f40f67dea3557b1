//! `loopback`, one of the plugin's names: what the reference plugin of that name does for a runtime.

use std::os::unix::process::CommandExt;

use serde_json::json;

use crate::stage::{BRINDLE, Ns, Said, start};

const CONF: &str = r#"{"cniVersion":"0.3.1","name":"cni-loopback","type":"loopback"}"#;

fn call(command: &str, netns: &str, input: &str) -> Said {
    let vars =
        [("CNI_COMMAND", command), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "lo"), ("CNI_NETNS", netns)];
    start(BRINDLE, &vars, input.as_bytes(), |c| {
        c.arg0("/opt/cni/bin/loopback");
    })
}

#[test]
fn lo_comes_up_is_checked_and_goes_down() {
    let pod = Ns::new("lo");
    let up = || pod.link("lo").unwrap().up;
    assert!(!up());
    let newer = CONF.replace("0.3.1", "1.0.0");
    let said = call("CHECK", &pod.path(), &newer);
    assert_eq!((said.code(), said.message().as_str()), (110, "lo is not up"));
    let said = call("ADD", &pod.path(), CONF);
    assert!(said.ok && up(), "{said:?}");
    let lo = json!([{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.path()}]);
    let ips = json!([{"version": "4", "address": "127.0.0.1/8", "interface": 0},
        {"version": "6", "address": "::1/128", "interface": 0}]);
    let expected = json!({"cniVersion": "0.3.1", "interfaces": lo, "ips": ips, "dns": {}});
    assert_eq!(said.json(), expected);
    // Behind another plugin its result is handed on.
    let before = r#"{"cniVersion":"1.0.0","name":"n","type":"loopback","prevResult":
        {"cniVersion":"1.0.0","interfaces":[],"ips":[{"address":"10.0.0.1/32"}],"dns":{}}}"#;
    assert_eq!(call("ADD", &pod.path(), before).json()["ips"][0]["address"], "10.0.0.1/32");
    let said = call("CHECK", &pod.path(), &newer);
    assert!(said.ok && said.out.is_empty(), "{said:?}");
    for _ in 0..2 {
        let said = call("DEL", &pod.path(), CONF);
        assert!(said.ok && !up() && said.out.is_empty(), "{said:?}");
    }
}

#[test]
fn a_namespace_that_is_gone_or_is_none() {
    for netns in ["", "/run/netns/bt-none-such"] {
        let said = call("DEL", netns, CONF);
        assert!(said.ok, "{netns}: {said:?}");
    }
    assert_eq!(call("ADD", "/run/netns/bt-none-such", CONF).code(), 3);
    assert_eq!(call("ADD", "", CONF).code(), 4);
    let host = call("ADD", &format!("/proc/{}/ns/net", std::process::id()), CONF);
    assert_eq!(host.code(), 4, "the host's own: {host:?}");
    for command in ["STATUS", "GC"] {
        assert!(call(command, "", &CONF.replace("0.3.1", "1.1.0")).ok, "it has no agent to ask");
    }
}
