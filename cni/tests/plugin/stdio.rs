//! What is said on standard output, to the letter, for right and wrong input. No namespaces, no agent.

use std::os::unix::process::CommandExt;

use crate::stage::{BRINDLE, BRINDLE_IPAM, Folder, Ns, Said, start};

const CONF: &str =
    r#"{"cniVersion":"1.0.0","name":"net","type":"brindle","agent_socket":"/nonexistent/cni.sock"}"#;

fn say(vars: &[(&str, &str)], input: &str) -> Said {
    start(BRINDLE, vars, input.as_bytes(), |_| {})
}

fn add_vars<'a>() -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/bt-none-such"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

#[test]
fn version_lists_what_is_supported() {
    let ask = |program| start(program, &[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"0.4.0"}"#, |_| {});
    let said = ask(BRINDLE);
    {
        assert!(said.ok);
        assert_eq!(said.out, ask(BRINDLE_IPAM).out);
        insta::assert_snapshot!(said.out, @r#"
        {
          "cniVersion": "0.4.0",
          "supportedVersions": [
            "0.3.1",
            "0.4.0",
            "1.0.0",
            "1.1.0"
          ]
        }
        "#);
    }
    assert_eq!(say(&[("CNI_COMMAND", "VERSION")], "").json()["cniVersion"], "1.1.0");
}

#[test]
fn people_get_help() {
    let said = start(BRINDLE, &[], b"", |c| {
        c.arg("--version");
    });
    assert!(said.ok && said.out.starts_with("brindle "), "{said:?}");
    let said = start(BRINDLE_IPAM, &[], b"", |c| {
        c.arg("--help");
    });
    assert!(said.ok && said.out.contains("CNI plugin"), "{said:?}");
    let said = start(BRINDLE, &[], b"", |c| {
        c.arg("frob");
    });
    assert!(!said.ok && said.err.contains("unknown argument \"frob\""), "{said:?}");
}

#[test]
fn every_wrong_call_is_one_error_object() {
    let without = |name: &str| add_vars().into_iter().filter(|(k, _)| *k != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| {
        let mut vars = without(name);
        vars.push((name, value));
        vars
    };
    let cases: Vec<(Vec<(&str, &str)>, &str)> = vec![
        (vec![], CONF),
        (with("CNI_COMMAND", "FROB"), CONF),
        (without("CNI_CONTAINERID"), CONF),
        (without("CNI_IFNAME"), CONF),
        (without("CNI_NETNS"), CONF),
        (with("CNI_IFNAME", "a/b"), CONF),
        (with("CNI_NETNS", "/run/netns/../x"), CONF),
        (add_vars(), ""),
        (add_vars(), "{"),
        (add_vars(), r#"{"cniVersion":"2.0.0","name":"net"}"#),
        (add_vars(), r#"{"cniVersion":"1.0.0","name":"net","mtu":"x"}"#),
        (add_vars(), r#"{"cniVersion":"1.0.0","name":"net","ipam":{"type":"dhcp"}}"#),
        (with("CNI_COMMAND", "CHECK"), r#"{"cniVersion":"0.3.1","name":"net"}"#),
        (with("CNI_COMMAND", "CHECK"), CONF),
        (with("CNI_COMMAND", "STATUS"), CONF),
        (add_vars(), CONF),
    ];
    let mut all = String::new();
    for (vars, conf) in cases {
        let said = say(&vars, conf);
        assert!(!said.ok);
        assert!(said.err.starts_with("brindle: "), "{said:?}");
        all += &serde_json::to_string(&said.json()).unwrap();
        all.push('\n');
    }
    insta::assert_snapshot!(all, @r#"
    {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets the CNI_* variables: see its log and its version","msg":"required environment variable CNI_COMMAND is missing"}
    {"cniVersion":"1.0.0","code":4,"details":"ADD, DEL, CHECK, STATUS, GC or VERSION","msg":"CNI_COMMAND: unknown command \"FROB\""}
    {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets the CNI_* variables: see its log and its version","msg":"required environment variable CNI_CONTAINERID is missing"}
    {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets the CNI_* variables: see its log and its version","msg":"required environment variable CNI_IFNAME is missing"}
    {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets the CNI_* variables: see its log and its version","msg":"required environment variable CNI_NETNS is missing"}
    {"cniVersion":"1.0.0","code":4,"details":"the container runtime sets the CNI_* variables: see its log and its version","msg":"CNI_IFNAME \"a/b\" is not valid: it contains '/', ':' or white space"}
    {"cniVersion":"1.0.0","code":4,"details":"like /run/netns/NAME or /proc/PID/ns/net","msg":"CNI_NETNS \"/run/netns/../x\" is not an absolute path without '..'"}
    {"cniVersion":"1.1.0","code":6,"details":"container runtimes write it there; by hand: CNI_COMMAND=... brindle < FILE","msg":"no network configuration on standard input"}
    {"cniVersion":"1.1.0","code":6,"details":"check the network configuration (/etc/cni/net.d), for instance with python3 -m json.tool FILE","msg":"network configuration: EOF while parsing an object at line 1 column 1"}
    {"cniVersion":"2.0.0","code":1,"details":"supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"incompatible CNI versions: the configuration is \"2.0.0\""}
    {"cniVersion":"1.0.0","code":7,"details":"correct the network configuration (/etc/cni/net.d), or the pod's annotation it comes from","msg":"network configuration: mtu: invalid type: string \"x\", expected u32 at line 1 column 44"}
    {"cniVersion":"1.0.0","code":2,"details":"use \"brindle-ipam\", or one of host-local, static","msg":"ipam.type: \"dhcp\" is not supported"}
    {"cniVersion":"0.3.1","code":1,"details":"supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"Check needs cniVersion 0.4.0 or later, not 0.3.1"}
    {"cniVersion":"1.0.0","code":7,"details":"CHECK compares with the result of ADD","msg":"prevResult: is missing"}
    {"cniVersion":"1.0.0","code":1,"details":"supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0","msg":"Status needs cniVersion 1.1.0 or later, not 1.0.0"}
    {"cniVersion":"1.0.0","code":3,"details":"the sandbox is gone; DEL it and make it anew","msg":"CNI_NETNS: open network namespace /run/netns/bt-none-such: No such file or directory (os error 2)"}
    "#);
}

#[test]
fn a_path_that_is_no_namespace_of_another_is_refused() {
    let folder = Folder::new("paths");
    let pod = Ns::new("paths");
    let file = folder.0.join("file");
    std::fs::write(&file, b"").unwrap();
    let link = folder.0.join("link");
    std::os::unix::fs::symlink(pod.path(), &link).unwrap();
    for (path, code, want) in [
        (link.to_str().unwrap(), 4, "is a symbolic link"),
        (&*format!("/proc/self/root{}", link.display()), 4, "is a symbolic link"),
        (file.to_str().unwrap(), 3, "not a namespace"),
        ("/dev/null", 4, "is not a network namespace"),
        ("/proc/self/ns/net", 4, "network namespace of the host itself"),
    ] {
        let mut vars = add_vars();
        vars.retain(|(k, _)| *k != "CNI_NETNS");
        vars.push(("CNI_NETNS", path));
        let said = say(&vars, CONF);
        assert_eq!(said.code(), code, "{path}: {said:?}");
        assert!(said.message().contains(want), "{path}: {said:?}");
    }
}

#[test]
fn without_an_agent_add_says_try_again_and_status_says_not_available() {
    let pod = Ns::new("noagent");
    let path = pod.path();
    let mut vars = add_vars();
    vars.retain(|(k, _)| *k != "CNI_NETNS");
    vars.push(("CNI_NETNS", &path));
    let said = say(&vars, CONF);
    assert_eq!(said.code(), 11);
    assert!(said.message().contains("/nonexistent/cni.sock: No such file"), "{said:?}");
    let said = say(&[("CNI_COMMAND", "STATUS")], &CONF.replace("1.0.0", "1.1.0"));
    assert_eq!(said.code(), 50);
}

#[test]
fn without_root_it_is_said_that_root_is_needed() {
    let folder = Folder::new("noroot");
    let pod = Ns::new("noroot");
    let socket = folder.0.join("cni.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // The program must be readable for others, wherever it was built.
    let program = folder.0.join("brindle");
    std::fs::copy(BRINDLE, &program).unwrap();
    let conf = CONF.replace("/nonexistent/cni.sock", socket.to_str().unwrap());
    let path = pod.path();
    for command in ["ADD", "DEL"] {
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", path.as_str()),
        ];
        let said = start(program.to_str().unwrap(), &vars, conf.as_bytes(), |c| {
            c.uid(65534).gid(65534);
        });
        assert!(!said.ok, "{said:?}");
        assert!(said.json()["details"].as_str().unwrap_or("").contains("root"), "{command}: {said:?}");
    }
    drop(listener);
}
