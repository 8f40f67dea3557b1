//! A node with the kernel's ipip and a node with the carrier talk to each other. On a kernel without ipip the test
//! runs itself again inside User-Mode Linux (integration/uml/run), which has it.
mod support;

use std::process::Command;

use brindle_carrier::control::How;
use brindle_kernel::icmp::{Answer, ErrorKind};
use brindle_kernel::netlink::Rtnl;
use support::{INNER_A, INNER_B, MTU, Side, World, transfer, wait};

/// The name a carrier's device has where the kernel has a `tunl0` of its own.
const DEVICE: &str = "brtun0";

/// True when the caller is to go on here; false when the test has run elsewhere, and passed.
fn here(test: &str, world: &World) -> bool {
    // Either makes tunl0 or finds the one that comes with the loaded module.
    let made = world.run(Side::A, || {
        let mut k = Rtnl::open().unwrap();
        k.add_link_generic("tunl0", "ipip", None).or_else(|e| if e.is_exists() { Ok(()) } else { Err(e) })
    });
    let Err(error) = made else { return true };
    assert!(error.is_unsupported(), "{error}");
    assert!(std::env::var_os("BRINDLE_UML").is_none(), "this User-Mode Linux has no ipip: {error}");
    let run = concat!(env!("CARGO_MANIFEST_DIR"), "/../../integration/uml/run");
    let status = Command::new(run)
        .args(["-t", "300", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success(), "in User-Mode Linux: {status}");
    false
}

#[test]
fn a_kernel_node_and_a_carrier_node_exchange_packets() {
    let mut world = World::new("mixed");
    if !here("a_kernel_node_and_a_carrier_node_exchange_packets", &world) {
        return;
    }
    world.dress(Side::A, "tunl0");
    assert_eq!(world.start(Side::B, DEVICE), How::Started);
    world.dress(Side::B, DEVICE);
    for (from, to) in [(Side::A, INNER_B), (Side::B, INNER_A)] {
        for len in [28, 84, usize::from(MTU)] {
            // Neighbours on the way may have to be found first.
            wait(&format!("{len} bytes from {from:?}"), || world.replies(from, to, len));
        }
    }
    // Large frames of either side meet the other's idea of them.
    transfer(&world, Side::A, Side::B, 4 << 20);
    transfer(&world, Side::B, Side::A, 4 << 20);
    let stats = world.stats(Side::B);
    assert_eq!(stats.inbound.dropped_superframe, 0, "{stats:?}");
    assert_eq!(stats.inbound.dropped_unknown_source, 0, "{stats:?}");
    assert_eq!(stats.inbound.dropped_inner_malformed, 0, "{stats:?}");

    // The kernel node's segment narrows: it knows at once, the carrier is told by the router.
    world.ns('r').run(|| Rtnl::open().unwrap().set_mtu("ra", 1400).unwrap()).unwrap();
    world.run(Side::A, || Rtnl::open().unwrap().set_mtu("eth0", 1400).unwrap());
    for (from, to) in [(Side::A, INNER_B), (Side::B, INNER_A)] {
        wait(&format!("{from:?} to learn its path MTU"), || {
            let answer = world.echo(from, to, 1480);
            // A sender that has learnt it does not send; the error itself may have gone to an earlier socket.
            matches!(answer, Some(Answer::Error { kind: ErrorKind::FragNeeded(1380), .. }) | None)
                && world.replies(from, to, 1380)
        });
        assert!(world.is_silent(from, to, 1381), "{from:?}");
    }
    assert!(world.stats(Side::B).outbound.dropped_too_big > 0);
    transfer(&world, Side::A, Side::B, 1 << 20);
    transfer(&world, Side::B, Side::A, 1 << 20);
}
