//! Whether a Calico runs on this node: two agents would undo each other's rules and routes, so ours neither starts beside
//! one nor removes what it still uses.
//!
//! Only what ends with the process counts, since a deleted calico-node leaves its files behind: a socket that listens, a
//! health check that answers, a process. Sockets are looked up in the kernel's list, which knows the network namespace and
//! not the mount namespace: calico-node shares the host's network with this agent, and its directory it need not.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use brindle_kernel::{netns::NetNs, process};

use crate::cluster::HEALTH_PORT;

/// Who is on this machine answers at once, or is stuck.
const PATIENCE: Duration = Duration::from_secs(1);
/// The health check's table is shorter.
const MOST: u64 = 64 * 1024;
/// Programs of Calico's agent, in a container or as a package.
const PROGRAMS: [&str; 2] = ["calico-node", "calico-felix"];

/// What shows that a Calico runs in this network namespace, as words for a message.
pub(crate) fn running() -> Option<String> {
    let bird = birds().into_iter().find(|socket| is_calicos(socket));
    bird.map(|socket| format!("its BIRD listens on {socket}")).or_else(felix).or_else(program)
}

/// What shows that a BIRD runs in this network namespace, Calico's or another: its routes are in use.
pub(crate) fn bird() -> Option<String> {
    birds().first().map(|socket| format!("a BIRD listens on {socket}"))
}

/// The control sockets of BIRD that listen in this network namespace.
fn birds() -> Vec<String> {
    control_sockets(&fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default())
}

/// Control sockets of BIRD in the kernel's list of unix sockets.
fn control_sockets(list: &str) -> Vec<String> {
    const LISTENS: u32 = 1 << 16;
    let socket = |line: &str| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line.split_ascii_whitespace();
        let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
        let path = fields.nth(3)?;
        let name = Path::new(path).file_name()?.to_str()?;
        let control = name.starts_with("bird") && name.ends_with(".ctl");
        (flags & LISTENS != 0 && control).then(|| path.to_owned())
    };
    list.lines().filter_map(socket).collect()
}

/// Whether a control socket is where calico-node has them (`/var/run/calico/bird.ctl`, `bird6.ctl`).
fn is_calicos(socket: &str) -> bool {
    Path::new(socket).parent().and_then(Path::file_name).is_some_and(|dir| dir == "calico")
}

/// Felix' health check.
fn felix() -> Option<String> {
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, HEALTH_PORT));
    let answer = ask(at).unwrap_or_default();
    is_felix(&answer).then(|| format!("its Felix answers health checks on {at}"))
}

fn ask(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /liveness HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether this answers `/liveness` as Felix does: 204 without words, or a table of its parts. An agent of ours answers
/// there too, in lines of its own.
fn is_felix(answer: &str) -> bool {
    let mut words = answer.split_ascii_whitespace();
    let http = words.next().is_some_and(|w| w.starts_with("HTTP/"));
    let silent = words.next() == Some("204");
    http && (silent || ["COMPONENT", "LIVENESS", "READINESS"].iter().all(|column| answer.contains(column)))
}

/// A process of it, where this agent sees the node's processes.
fn program() -> Option<String> {
    let here = NetNs::current().ok()?.id();
    let all = process::in_namespaces(&BTreeSet::from([here])).ok()?;
    let found = all.into_iter().find(|p| PROGRAMS.contains(&&*p.program))?;
    Some(format!("its process {} has the pid {}", found.program, found.pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listening_control_socket_is_a_bird() {
        let list = "\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 30 /run/bird/bird.ctl
0000000000000000: 00000002 00000000 00010000 0001 01 31 /var/run/calico/bird.ctl
0000000000000000: 00000003 00000000 00000000 0001 03 32 /var/run/calico/bird6.ctl
0000000000000000: 00000002 00000000 00010000 0001 01 33 /run/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 34
garbage
";
        let found = control_sockets(list);
        assert_eq!(found, ["/run/bird/bird.ctl", "/var/run/calico/bird.ctl"]);
        assert!(!is_calicos(&found[0]), "somebody's own BIRD is no Calico");
        assert!(is_calicos(&found[1]));
    }

    #[test]
    fn the_socket_of_a_process_that_ended_does_not_count() {
        let dir = std::env::temp_dir().join(format!("brindle-calico-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("bird.ctl");
        let listed = || birds().contains(&path.display().to_string());
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(listed());
        drop(socket);
        assert!(path.exists() && !listed());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn felix_is_known_by_how_it_answers() {
        assert!(is_felix("HTTP/1.0 204 No Content\r\n\r\n"));
        let table = "|    COMPONENT     | TIMEOUT |    LIVENESS    |   READINESS   | DETAIL |";
        assert!(is_felix(&format!("HTTP/1.0 200 OK\r\n\r\n{table}")));
        assert!(is_felix(&format!("HTTP/1.0 503 Service Unavailable\r\n\r\n{table}")));
        assert!(!is_felix("HTTP/1.1 200 OK\r\n\r\nlive\n  felix: answers\n  bgpd: answers\n"));
        assert!(!is_felix(""));
    }
}
