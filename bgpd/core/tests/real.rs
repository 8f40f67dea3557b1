//! Real messages (`fixtures/README.md`): every one is read, and what it means is compared with a reviewed snapshot.
//!
//! What can be written again must say the same when it comes back.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write;

use brindle_bgpd_core::wire::{Message, Prefixes, Update, WireCx};
use bytes::BytesMut;

fn messages(file: &str) -> impl Iterator<Item = Result<(WireCx, Vec<u8>), &str>> {
    file.lines().filter(|l| !l.is_empty()).map(|line| {
        let Some((width, hex)) = line.split_once(' ').filter(|(w, _)| *w != "#") else { return Err(line) };
        let frame =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
        // Internal, so that LOCAL_PREF and its like are read as well.
        let cx = WireCx {
            four_octet_as: width.starts_with('4'),
            add_path: [width.ends_with('+'); 2],
            extended_message: true,
            ibgp: true,
        };
        Ok((cx, frame))
    })
}

fn describe(file: &str) -> String {
    let mut out = String::new();
    for line in messages(file) {
        match line {
            Err(comment) => writeln!(out, "{comment}").unwrap(),
            Ok((cx, frame)) => match Message::parse(&frame, &cx) {
                Err(e) => writeln!(out, "{} octets: {}: {e}", frame.len(), e.notification).unwrap(),
                Ok(m) => {
                    let mut canonical = BytesMut::new();
                    if m.emit(&cx, &mut canonical).is_ok() {
                        assert_eq!(
                            without_faults(Message::parse(&canonical, &cx).unwrap()),
                            without_faults(m.clone())
                        );
                    }
                    match m {
                        Message::Update(u) => {
                            writeln!(out, "{} octets: {}", frame.len(), update(&u)).unwrap()
                        }
                        Message::Notification(n) => writeln!(out, "NOTIFICATION {n}").unwrap(),
                        other => writeln!(out, "{other:?}").unwrap(),
                    }
                }
            },
        }
    }
    out
}

fn without_faults(mut m: Message) -> Message {
    if let Message::Update(u) = &mut m {
        u.faults.clear();
    }
    m
}

fn update(u: &Update) -> String {
    let mut s = String::from("UPDATE");
    for p in &u.withdrawn {
        write!(s, " -{}", prefixes(p)).unwrap();
    }
    for r in &u.reach {
        write!(s, " +{} via {}", prefixes(&r.prefixes), r.next_hop.ip()).unwrap();
    }
    if let Some(f) = u.end_of_rib {
        write!(s, " end of {f:?}").unwrap();
    }
    if let Some(a) = &u.attributes {
        write!(s, " {:?} \"{}\" pref {:?} med {:?}", a.origin, a.as_path, a.local_pref, a.med).unwrap();
        let lists =
            [a.communities.len(), a.ext_communities.len(), a.large_communities.len(), a.cluster_list.len()];
        write!(s, " lists {lists:?} unknown {:?}", a.unknown.iter().map(|x| x.code).collect::<Vec<_>>())
            .unwrap();
        if let Some(x) = a.aggregator {
            write!(s, " aggregator {} {}", x.asn, x.address).unwrap();
        }
    }
    for f in &u.faults {
        write!(s, " | {f}").unwrap();
    }
    s
}

/// The first and the last, and how many.
fn prefixes(p: &Prefixes) -> String {
    let list: Vec<String> = match p {
        Prefixes::V4(v) => v.iter().map(|n| n.prefix.to_string()).collect(),
        Prefixes::V6(v) => v.iter().map(|n| n.prefix.to_string()).collect(),
    };
    match list.as_slice() {
        [one] => one.clone(),
        [first, .., last] => format!("{first}..{last} ({})", list.len()),
        [] => String::new(),
    }
}

#[test]
fn captures_of_the_tcpdump_suite_mean_what_they_meant() {
    insta::assert_snapshot!(describe(include_str!("fixtures/tcpdump.hex")));
}

#[test]
fn captures_of_routers_mean_what_they_meant() {
    insta::assert_snapshot!(describe(include_str!("fixtures/netgauze.hex")));
}

#[test]
fn archived_updates_mean_what_they_meant() {
    let text = describe(include_str!("fixtures/mrt.hex"));
    insta::assert_snapshot!(text);
}
