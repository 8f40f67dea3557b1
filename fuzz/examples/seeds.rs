//! Writes a first corpus, so that a short run already reaches the depths: real BGP messages (the fixtures of
//! bgpd/core), what long runs have found to reach new ground (`seeds/`), and a sound example for each of the other targets.
//!
//! `cargo run --manifest-path fuzz/Cargo.toml --example seeds`

use std::{fs, io, path::Path};

use brindle_bgpd_core::wire::RawUpdate;

const FIXTURES: [&str; 3] = [
    include_str!("../../bgpd/core/tests/fixtures/tcpdump.hex"),
    include_str!("../../bgpd/core/tests/fixtures/netgauze.hex"),
    include_str!("../../bgpd/core/tests/fixtures/mrt.hex"),
];

/// Inputs by target, one a line.
const FOUND: [(&str, &str); 13] = [
    ("message", include_str!("../seeds/message.hex")),
    ("open", include_str!("../seeds/open.hex")),
    ("attrs", include_str!("../seeds/attrs.hex")),
    ("nlri", include_str!("../seeds/nlri.hex")),
    ("speaker", include_str!("../seeds/speaker.hex")),
    ("policy", include_str!("../seeds/policy.hex")),
    ("yaml", include_str!("../seeds/yaml.hex")),
    ("selector", include_str!("../seeds/selector.hex")),
    ("block", include_str!("../seeds/block.hex")),
    ("cni_proto", include_str!("../seeds/cni_proto.hex")),
    ("cni_conf", include_str!("../seeds/cni_conf.hex")),
    ("ipip", include_str!("../seeds/ipip.hex")),
    ("netlink", include_str!("../seeds/netlink.hex")),
];

fn octets(hex: &str) -> Option<Vec<u8>> {
    let octet = |i| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(octet).collect()
}

/// Session bits and frames.
fn messages() -> impl Iterator<Item = (u8, Vec<u8>)> {
    FIXTURES.iter().flat_map(|f| f.lines()).filter_map(|line| {
        let (session, hex) = line.split_once(' ')?;
        let bits = match session {
            "4" => 16,
            "2" => 17,
            "4+" => 16 + 12,
            _ => return None,
        };
        Some((bits, octets(hex)?))
    })
}

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let mut count = 0;
    let mut put = |target: &str, bytes: &[u8]| {
        let dir = corpus.join(target);
        fs::create_dir_all(&dir)?;
        count += 1;
        fs::write(dir.join(format!("seed-{count:04}")), bytes)
    };
    for (bits, frame) in messages() {
        put("message", &[&[bits][..], &frame].concat())?;
        let body = frame.get(19..).unwrap_or_default();
        match frame.get(18) {
            Some(1) => {
                put("open", body)?;
                put("open", body.get(10..).unwrap_or_default())?;
            }
            Some(2) => {
                if let Ok(raw) = RawUpdate::split(body) {
                    put("attrs", &[&[bits][..], raw.attributes].concat())?;
                    put("nlri", &[&[bits, 1][..], raw.nlri].concat())?;
                }
            }
            _ => {}
        }
    }
    for (target, lines) in FOUND {
        for input in lines.lines().filter_map(octets) {
            put(target, &input)?;
        }
    }
    for text in [
        "all()",
        "a == 'b' && c != \"d\" || !has(e.f/g)",
        "x in {'a', 'b'} && y not in {\"c\"}",
        "(k contains 'v') || z starts with 'p' && !(w ends with 's')",
        "global()",
    ] {
        put("selector", text.as_bytes())?;
    }
    put(
        "block",
        br#"{"cidr":"10.0.0.0/29","affinity":"host:n1","allocations":[0,null,null,null,null,null,null,1],
        "unallocated":[1,2,3,4,5,6],"attributes":[{"handle_id":"k8s.1","secondary":{"node":"n1"}},
        {"handle_id":"h2","releasedAt":"2026-01-01T00:00:00Z"}],"sequenceNumber":7,
        "sequenceNumberForAllocation":{"0":1},"deleted":false,"strictAffinity":false}"#,
    )?;
    put("cni_proto", br#"{"version":1,"call":"ping"}"#)?;
    put(
        "cni_proto",
        br#"{"version":1,"call":"check","addresses":["10.0.0.1/32"],"attachment":{"container_id":"c1","ifname":"eth0",
        "netns":"/run/netns/x","netns_id":"4:1","network":"brindle","pod":{"namespace":"n","name":"p"}}}"#,
    )?;
    put("cni_proto", br#"{"reply":"added","addresses":["10.0.0.1/32"],"host_ifname":"cali1","mtu":1450}"#)?;
    put(
        "cni_conf",
        br#"{"cniVersion":"1.0.0","name":"n","type":"brindle","mtu":1400,"ipam":{"type":"brindle-ipam","assign_ipv6":"true",
        "ipv4_pools":["10.0.0.0/16"]},"runtimeConfig":{"ips":["10.0.0.9/32"],"mac":"02:00:00:00:00:01"},"dns":{"domain":"d"},
        "prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/x"}],
        "ips":[{"address":"10.0.0.9/32","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}}"#,
    )?;
    put(
        "cni_conf",
        b"ADD\nc1\n/run/netns/x\neth0\n/opt/cni/bin\nIgnoreUnknown=1;K8S_POD_NAME=p;IP=10.0.0.1/32",
    )?;
    // A NEWROUTE with destination, device and gateway, and an error with a text.
    let attr = |kind: u8, value: [u8; 4]| [&[8, 0, kind, 0][..], &value].concat();
    let route = [
        &[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0][..],
        &attr(1, [10, 1, 2, 0]),
        &attr(4, [2, 0, 0, 0]),
        &attr(5, [10, 0, 0, 1]),
    ]
    .concat();
    let error = [&[0xea, 0xff, 0xff, 0xff][..], &[0; 16], &[9, 0, 1, 0], b"words"].concat();
    for (kind, flags, body) in [(24u8, 2u8, route), (2, 3, error)] {
        let len = u8::try_from(16 + body.len()).expect("short");
        let head = [len, 0, 0, 0, kind, 0, 0, flags, 1, 0, 0, 0, 0, 0, 0, 0];
        put("netlink", &[&head[..], &body].concat())?;
    }
    // Everybody dials, opens, confirms; routes come and go; a restart.
    let up = |odd: u8| -> Vec<[u8; 6]> {
        let mut steps = vec![[1, 0, 30, 0, 0, 0]];
        for command in [2, 4, 5] {
            steps.extend((0..4).map(|n| [command, n, odd, 0, 0, 0]));
        }
        steps
    };
    let routes = [
        [14, 0, 7, 0, 0, 0],
        [6, 0, 1, 1, 4, 1],
        [6, 1, 1, 2, 4, 2],
        [7, 2, 2, 1, 0, 3],
        [12, 0, 255, 255, 0, 0],
    ];
    let gone = [
        [6, 0, 1, 0, 1, 0],
        [13, 1, 1, 1, 0, 0],
        [13, 2, 3, 1, 0, 0],
        [12, 0, 0, 1, 0, 0],
        [11, 0, 0, 0, 0, 0],
    ];
    for odd in [0, 2, 6, 14, 30, 32, 64, 128] {
        let steps = [&up(odd)[..], &routes, &gone, &up(odd), &routes, &[[15, 0, 5, 1, 0, 0]], &gone].concat();
        put("speaker", steps.as_flattened())?;
    }
    for text in [
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: a\nspec:\n  cidr: 10.0.0.0/16\n  ipipMode: Always\n  blockSize: 26\n  natOutgoing: true\n---\n{\"kind\": \"Nope\"}\n",
        "apiVersion: projectcalico.org/v3\nkind: List\nitems:\n- kind: BGPPeer\n  metadata: {name: p}\n  spec:\n    peerIP: 192.0.2.1\n    asNumber: 64512.10\n    unknown: &x [yes, 014, *x]\n",
        "kind: Node\nmetadata:\n  name: n1\n  labels: {a: yes}\nspec:\n  bgp:\n    ipv4Address: 10.0.0.1/24\n",
    ] {
        put("yaml", text.as_bytes())?;
    }
    // A TCP segment, alone, with a header to repair, and as a batch.
    let mut tcp = vec![0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 1, 10, 2, 0, 1];
    tcp.extend([0, 80, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    tcp.extend([7; 20]);
    for how in 0..8u8 {
        put("ipip", &[&[0x80 | how, 0, 60][..], &tcp, &tcp].concat())?;
        put("ipip", &[&[0x80 | how, 0, 60][..], &tcp].concat())?;
    }
    println!("{count} files in {}", corpus.display());
    Ok(())
}
