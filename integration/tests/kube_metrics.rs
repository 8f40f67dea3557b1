//! Metrics of an agent without a speaker, with its datastore and without. Needs root.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use brindle_integration::{kube_node::KubeNode, wait::until};

const LONG: Duration = Duration::from_secs(90);
const AT: &str = "127.0.0.1:9091";
const ARGS: [&str; 4] = ["--networking", "none", "--metrics", AT];

/// The answer of `/metrics`; the reason if there is none.
fn scrape(node: &KubeNode) -> Result<String, String> {
    let ask = || {
        let mut stream = TcpStream::connect(AT)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    node.ns.ns().run(ask).expect("the namespace is alive").map_err(|e: std::io::Error| e.to_string())
}

#[track_caller]
fn says(node: &KubeNode, line: &str) -> String {
    until(line, LONG, || match scrape(node) {
        Ok(text) if text.lines().any(|l| l.starts_with(line)) => Ok(text),
        Ok(text) | Err(text) => Err(format!("{text}\n{}", node.log())),
    })
}

#[test]
fn an_agent_without_a_speaker_tells_of_datastore_policy_and_calls() {
    let mut node = KubeNode::new("kmetrics", "node-a", "10.0.0.1/16");
    node.register();
    node.start_agent(&ARGS);
    node.wait_for_agent(LONG);
    says(&node, "brindle_policy_in_sync 1");
    says(&node, "brindle_cni_calls_total{command=\"status\",result=\"ok\"} 1");
    let text = says(&node, "brindle_datastore_connected 1");
    assert!(text.contains("brindle_process_resident_bytes ") && !text.contains("brindle_bgp_"), "{text}");

    node.server.stop();
    says(&node, "brindle_datastore_connected 0");
    node.stop_agent();
    node.start_agent(&ARGS);
    // It waits, and says so.
    says(&node, "brindle_datastore_connected 0");
    let (live, said) = node.probe("--live");
    assert!(live, "{said}");
}
