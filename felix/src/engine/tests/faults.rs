//! The kernel refuses, drops, delays and garbles: the engine ends where it would have ended anyway, and says what was
//! wrong meanwhile.

use brindle_kernel::fake::{Call, Fault};
use nix_errno::*;

use super::*;

/// The errnos of interest, by number: this package does not know libc.
mod nix_errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ESRCH: i32 = 3;
    pub(super) const EINTR: i32 = 4;
    pub(super) const EEXIST: i32 = 17;
    pub(super) const ENETDOWN: i32 = 100;
}

fn starts_with(faults: &[(Call, Fault)]) -> Sim {
    let w = world();
    w.add_device(POD_DEV, true);
    for (call, fault) in faults {
        w.fail_next(*call, *fault);
    }
    let mut s = settled(&w);
    s.pass(Duration::from_secs(15));
    assert!(w.faults_used_up());
    s
}

#[test]
fn every_kind_of_refusal_is_survived() {
    for errno in [EPERM, ESRCH, EEXIST, ENETDOWN] {
        let s =
            starts_with(&[(Call::WriteRoute, Fault::Errno(errno)), (Call::WriteRoute, Fault::Errno(errno))]);
        assert_eq!(s.table(), SETTLED, "errno {errno}");
        assert!(s.report().routes.in_sync && s.report().routes.failed.is_empty());
    }
}

#[test]
fn a_bulk_without_an_answer_is_read_back() {
    for fault in [Fault::Timeout, Fault::Overrun, Fault::Garbled] {
        let s = starts_with(&[(Call::WriteBulk, fault)]);
        assert_eq!(s.table(), SETTLED, "{fault:?}");
        let s = starts_with(&[(Call::WriteRoute, fault), (Call::WriteRoute, fault)]);
        assert_eq!(s.table(), SETTLED, "in the middle: {fault:?}");
    }
}

#[test]
fn a_failed_reading_is_repeated_and_nothing_is_written_meanwhile() {
    let faults = [Fault::Errno(EINTR), Fault::Unstable, Fault::Garbled, Fault::Overrun, Fault::Errno(EPERM)];
    for call in [Call::Links, Call::Addrs, Call::Routes] {
        for fault in faults {
            let s = starts_with(&[(call, fault)]);
            assert_eq!(s.table(), SETTLED, "{call:?} {fault:?}");
        }
    }
    let w = world();
    w.add_device(POD_DEV, true);
    let before = w.route_writes();
    w.fail_next(Call::Routes, Fault::Garbled);
    let s = settled(&w);
    assert_eq!(w.route_writes(), before);
    assert!(s.report().routes.failed[0].contains("cannot read the kernel"), "{:?}", s.report());
}

#[test]
fn lost_events_lead_to_a_full_reading() {
    let w = world();
    w.add_device(POD_DEV, true);
    let mut s = settled(&w);
    w.fail_next(Call::Events, Fault::Overrun);
    let r = w.routes().into_iter().find(|r| r.dst.to_string() == "192.168.2.0/26").unwrap();
    write(&w, RouteChange::Delete(r));
    s.settle();
    assert_eq!(s.table(), SETTLED, "the news of the deletion was among what was lost");
}

#[test]
fn thousands_of_devices_at_once_overrun_the_listener_and_nothing_is_lost() {
    let w = world();
    w.add_device(POD_DEV, true);
    let mut s = settled(&w);
    for i in 0..4_200 {
        w.add_device(&format!("dev{i}"), false);
    }
    let r = w.routes().into_iter().find(|r| r.dst.to_string() == "192.168.2.0/26").unwrap();
    write(&w, RouteChange::Delete(r));
    s.settle();
    assert_eq!(s.table(), SETTLED);
}

#[test]
fn a_persistent_refusal_is_retried_ever_more_slowly_and_said_once() {
    let w = world();
    w.add_device(POD_DEV, true);
    for _ in 0..1000 {
        w.fail_next(Call::WriteRoute, Fault::Errno(EPERM));
    }
    let mut s = settled(&w);
    s.pass(Duration::from_secs(60));
    assert!(!w.faults_used_up(), "60 s of retries used up 1000 attempts");
    assert_eq!(s.report().routes.failed.len(), 4, "{:?}", s.report().routes.failed);
    assert!(!s.report().routes.in_sync);
    assert_eq!(s.report().ready.len(), 0);
}

#[test]
fn a_refused_setting_keeps_the_pod_waiting_and_is_retried() {
    let w = world();
    w.add_device(POD_DEV, true);
    // The first is the host's, the second the pod's.
    w.fail_next(Call::Sysctl, Fault::Errno(EPERM));
    w.fail_next(Call::Sysctl, Fault::Errno(EPERM));
    let mut s = settled(&w);
    assert_eq!(s.report().ready.len(), 0);
    assert_eq!(s.report().routes.failed.len(), 2);
    s.pass(Duration::from_secs(1));
    assert_eq!(s.report().ready.len(), 1);
    assert_eq!(w.sysctl("net/ipv4/ip_forward").unwrap(), "1");
}
