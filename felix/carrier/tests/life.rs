//! Start, adoption, death and end of a carrier, and its control socket.
mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use brindle_carrier::control::{ClientError, How, LaunchError, Route, ensure};
use brindle_kernel::exec;
use support::{A, INNER_B, PROGRAM, Side, World, config, exists, wait};

#[test]
fn the_death_of_the_agent_does_not_touch_traffic_and_the_next_one_adopts() {
    let world = World::with_carriers("adopt");
    // An agent that starts node a's carrier, in place of the one the test started.
    world.client(Side::A).shutdown(true).unwrap();
    let launch = world.launch(Side::A, "tunl0");
    let script = format!(
        "{PROGRAM} --local {A} --control {} --pid-file {} & wait",
        launch.control.display(),
        launch.pid_file.display()
    );
    let mut agent = world.run(Side::A, || {
        Command::new("/bin/sh").args(["-c", &script]).stdout(Stdio::null()).spawn().unwrap()
    });
    wait("the carrier to answer", || brindle_carrier::control::Client::connect(&launch.control).is_ok());
    world.client(Side::A).set_config(&config(Side::A)).unwrap();
    let pid = world.pid(Side::A);
    assert!(world.replies(Side::A, INNER_B, 84));
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(world.replies(Side::A, INNER_B, 84), "forwards without the agent");
    let mut adopted = world.ensure(Side::A, "tunl0");
    assert_eq!(adopted.how, How::Adopted);
    assert_eq!((adopted.hello.pid, adopted.hello.configured), (pid, true));
    assert!(!adopted.client.set_config(&config(Side::A)).unwrap().changed, "nothing to do");
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn a_killed_carrier_leaves_device_and_routes_and_a_new_one_goes_on() {
    let mut world = World::with_carriers("kill");
    let pid = world.pid(Side::A);
    let index = |world: &World| {
        world.run(Side::A, || {
            let mut k = brindle_kernel::netlink::Rtnl::open().unwrap();
            let link = k.link_by_name("tunl0").unwrap().unwrap();
            (link.index, k.route_to(INNER_B.into()).unwrap().unwrap().hops)
        })
    };
    let before = index(&world);
    world.kill(world.keeper(Side::A));
    world.kill(pid);
    assert_eq!(index(&world), before, "same device, same route");
    assert!(world.is_silent(Side::A, INNER_B, 84));
    assert_eq!(world.start(Side::A, "tunl0"), How::Started);
    assert_eq!(index(&world), before);
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn a_killed_carrier_is_followed_by_another_without_an_agent() {
    let world = World::with_carriers("keeper");
    let keeper = world.keeper(Side::A);
    for _ in 0..3 {
        let pid = world.pid(Side::A);
        world.kill(pid);
        wait("another carrier that forwards", || world.replies(Side::A, INNER_B, 84));
        assert_ne!(world.pid(Side::A), pid);
    }
    assert_eq!(world.keeper(Side::A), keeper);
    let mut adopted = world.ensure(Side::A, "tunl0");
    assert_eq!((adopted.how, adopted.hello.configured), (How::Adopted, true));
    assert!(!adopted.client.set_config(&config(Side::A)).unwrap().changed, "it has what the first one had");
}

#[test]
fn an_agent_that_comes_while_the_carrier_is_dead_waits_for_the_keepers_next() {
    let world = World::with_carriers("wait4");
    let keeper = world.keeper(Side::A);
    world.kill(world.pid(Side::A));
    let adopted = world.ensure(Side::A, "tunl0");
    assert_eq!(adopted.how, How::Adopted);
    assert_eq!(world.keeper(Side::A), keeper, "no second one");
}

#[test]
fn an_end_as_asked_ends_the_keeper_too() {
    let world = World::with_carriers("bye");
    let launch = world.launch(Side::A, "tunl0");
    let keeper = brindle_carrier::keeper::lock_file(&launch.pid_file);
    world.client(Side::A).shutdown(false).unwrap();
    wait("the keeper's end", || !exists(&keeper));
    assert!(!exists(&brindle_carrier::keeper::config_file(&launch.pid_file)));
    assert!(!exists(&launch.control));
}

#[test]
fn a_frame_that_waits_when_the_carrier_starts_is_carried_once_it_is_configured() {
    let world = World::with_carriers("wait");
    world.client(Side::A).shutdown(true).unwrap();
    let mut carrier = world.ensure(Side::A, "tunl0");
    let socket = world.run(Side::A, || brindle_kernel::icmp::EchoSocket::open().unwrap());
    socket.send(INNER_B, 1, 1, 84).unwrap();
    assert_eq!(carrier.client.stats().unwrap().outbound.frames, 0);
    carrier.client.set_config(&config(Side::A)).unwrap();
    let sockets = [socket];
    let ready = brindle_kernel::icmp::wait_readable(&sockets, Duration::from_secs(5)).unwrap();
    assert_eq!(ready, [0]);
    carrier.client.shutdown(false).unwrap();
    carrier.child.unwrap().wait().unwrap();
}

#[test]
fn an_end_that_keeps_the_device_keeps_it_and_one_that_does_not_removes_it() {
    let world = World::with_carriers("end");
    let launch = world.launch(Side::A, "tunl0");
    world.client(Side::A).shutdown(true).unwrap();
    assert!(world.has_device(Side::A, "tunl0"));
    assert!(!exists(&launch.control) && !exists(&launch.pid_file));
    let carrier = world.ensure(Side::A, "tunl0");
    carrier.client.shutdown(false).unwrap();
    assert!(!world.has_device(Side::A, "tunl0"));
    carrier.child.unwrap().wait().unwrap();
}

#[test]
fn a_carrier_for_another_address_is_replaced() {
    let mut world = World::with_carriers("replace");
    let mut launch = world.launch(Side::A, "tunl0");
    launch.local = support::INNER_A; // any other address of the node
    let carrier = world.run(Side::A, || ensure(&launch)).unwrap();
    assert!(matches!(&carrier.how, How::Replaced { why } if why.contains("10.1.0.2")), "{:?}", carrier.how);
    carrier.client.shutdown(true).unwrap();
    carrier.child.unwrap().wait().unwrap();
    assert_eq!(world.start(Side::A, "tunl0"), How::Started);
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn a_carrier_that_stands_still_is_replaced() {
    let mut world = World::with_carriers("hung");
    let pid = world.pid(Side::A);
    let stop = exec::run("kill", ["-STOP", &pid.to_string()], None, Duration::from_secs(5)).unwrap();
    assert!(stop.status.success());
    let mut carrier = world.ensure(Side::A, "tunl0");
    assert!(
        matches!(&carrier.how, How::Replaced { why } if why.contains("did not answer")),
        "{:?}",
        carrier.how
    );
    carrier.client.set_config(&config(Side::A)).unwrap();
    assert_ne!(carrier.hello.pid, pid);
    assert!(world.replies(Side::A, INNER_B, 84));
    world.adopt_child(carrier);
}

#[test]
fn a_second_instance_is_refused_and_says_why() {
    let world = World::with_carriers("second");
    let pid = world.keeper(Side::A);
    let launch = world.launch(Side::A, "tunl0");
    let run = |pid_file: &str, device: &str, local: &str, code: i32| {
        let control = world.dir.join("other.sock");
        let args = [
            "--device",
            device,
            "--local",
            local,
            "--control",
            control.to_str().unwrap(),
            "--pid-file",
            pid_file,
        ];
        let out = world.run(Side::A, || exec::run(PROGRAM, args, None, Duration::from_secs(10))).unwrap();
        assert_eq!(out.status.code(), Some(code));
        assert!(!exists(&control));
        out.text().trim().to_owned()
    };
    let same = run(launch.pid_file.to_str().unwrap(), "tunl0", "10.1.0.2", 3);
    assert!(same.contains(&format!("another instance is running (pid {pid})")), "{same}");
    let other = world.dir.join("other.pid");
    let other = other.to_str().unwrap();
    assert_eq!(run(other, "tunl0", "10.1.0.2", 1), "device tunl0 is in use by another process");
    let foreign = run(other, "eth0", "10.1.0.2", 1);
    assert_eq!(
        foreign,
        "device eth0 exists and is not a TUN device of ours: choose another name or remove it"
    );
    let absent = run(other, "brtun0", "10.9.9.9", 1);
    assert!(absent.starts_with("cannot open a raw socket for IP protocol 4 at 10.9.9.9"), "{absent}");
    assert!(!world.has_device(Side::A, "brtun0"), "a failed start leaves no device");
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn a_program_that_cannot_start_is_an_error_with_its_reason() {
    let world = World::new("fail");
    let mut launch = world.launch(Side::A, "tunl0");
    launch.local = "10.9.9.9".parse().unwrap();
    let error = world.run(Side::A, || ensure(&launch)).unwrap_err();
    assert!(matches!(&error, LaunchError::Failed(why) if why.contains("10.9.9.9")), "{error}");
    launch.program = "/nowhere/brindle-ipip".into();
    let error = world.run(Side::A, || ensure(&launch)).unwrap_err();
    assert_eq!(error.to_string(), "cannot execute /nowhere/brindle-ipip");
}

#[test]
fn a_bad_configuration_is_refused_whole_and_the_old_one_stays() {
    let world = World::with_carriers("config");
    let mut bad = config(Side::A);
    bad.routes.push(Route { dst: "192.168.5.1/24".parse().unwrap(), via: vec![A] });
    let error = world.client(Side::A).set_config(&bad).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ClientError::Refused { .. }));
    assert!(text.contains("192.168.5.1/24") && text.contains("192.168.5.0/24"), "{text}");
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn the_control_socket_is_private_and_survives_nonsense() {
    let world = World::with_carriers("control");
    let path = world.launch(Side::A, "tunl0").control;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let try_to_ask = |line: &[u8], limit: Duration| -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(line)?;
        let mut answer = String::new();
        BufReader::new(&stream).read_line(&mut answer)?;
        Ok(answer)
    };
    let ask = |line: &[u8]| try_to_ask(line, Duration::from_secs(5)).unwrap();
    assert!(
        ask(b"{\"op\":\"hello\",\"version\":99}\n").contains("\"answer\":\"hello\""),
        "hello is for all versions"
    );
    for (line, says) in [
        (&b"nonsense\n"[..], "not a request of protocol version 2"),
        (b"\xff\xfe\n", "not a request"),
        (b"{\"op\":\"dance\"}\n", "request \\\"dance\\\" of protocol version 2"),
        (b"{\"op\":\"set-config\",\"config\":{\"mtu\":70000}}\n", "request \\\"set-config\\\""),
        (b"[[[[[[[[\n", "not a request"),
    ] {
        let answer = ask(line);
        assert!(answer.contains("\"answer\":\"error\"") && answer.contains(says), "{answer}");
    }
    // Silent and half-spoken connections do not keep others from speaking, but there is an end to them.
    // A few more than there is room for: some of the room may still be taken by those above.
    let silent: Vec<_> = (0..24)
        .map(|_| {
            let mut s = UnixStream::connect(&path).unwrap();
            // One that was refused has been hung up on.
            let _ = s.write_all(b"{\"op\":");
            s
        })
        .collect();
    let soon = Duration::from_millis(200);
    wait("the refusal of one connection too many", || {
        try_to_ask(b"", soon).is_ok_and(|answer| answer.contains("connections are open already"))
    });
    drop(silent);
    wait("room again", || {
        let answer = try_to_ask(b"{\"op\":\"get-stats\"}\n", soon);
        answer.is_ok_and(|answer| answer.contains("\"answer\":\"stats\""))
    });
    assert!(world.replies(Side::A, INNER_B, 84));
}

#[test]
fn an_idle_carrier_uses_no_processor_time() {
    let world = World::with_carriers("idle");
    let pid = world.pid(Side::A);
    let switches = || {
        let mut total = 0u64;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            // The thread of a control connection that has just ended may go while we look.
            let Ok(status) = task.and_then(|t| std::fs::read_to_string(t.path().join("status"))) else {
                continue;
            };
            let lines = status.lines().filter(|l| l.contains("ctxt_switches"));
            total += lines.map(|l| l.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum::<u64>();
        }
        total
    };
    wait("the device to fall silent", || {
        let before = switches();
        std::thread::sleep(Duration::from_millis(1500));
        switches() == before
    });
}
