//! What holds for any message and any bytes: used by the property tests here and by the fuzz targets in `fuzz/`.

use brindle_bgpd_core::wire::*;
use bytes::BytesMut;

/// `None` if the message has no form of this size.
pub(crate) fn emit(message: &Message, cx: &WireCx) -> Option<BytesMut> {
    let mut out = BytesMut::new();
    match message.emit(cx, &mut out) {
        Ok(()) => Some(out),
        Err(EmitError::TooLong { .. } | EmitError::NotOneMessage | EmitError::Empty) => None,
        Err(e) => panic!("{e} for {message:?}"),
    }
}

/// Every refusal must be one of those the RFCs know, with the data they ask for.
pub(crate) fn check_refusal(e: &DecodeError, frame: &[u8]) {
    let n = &e.notification;
    let known: &[u8] = match n.code {
        1 => &[1, 2, 3],
        2 => &[0, 1, 2, 3, 4, 6],
        // The closed list of RFC 7606, plus the subcode of the error when there is nothing to withdraw (5.2).
        3 => &[1, 2, 3, 4, 5, 6, 8, 9, 10, 11],
        7 => &[1],
        _ => &[],
    };
    assert!(known.contains(&n.subcode), "{n} for {frame:02x?}");
    assert!(iana::subcode_name(n.code, n.subcode).is_some() || (n.code, n.subcode) == (2, 0), "{n}");
    assert!(n.data.len() <= 4_075, "the NOTIFICATION must fit");
    assert!(!e.what.is_empty());
    if (n.code, n.subcode) == (2, 1) {
        assert_eq!(n.data, [0, 4]);
    }
}

/// Octets a decoded message claims, roughly: the amplification of a hostile one.
fn weight(m: &Message) -> usize {
    let prefixes = |p: &Prefixes| match p {
        Prefixes::V4(v) => v.capacity() * size_of::<Nlri<ipnet::Ipv4Net>>(),
        Prefixes::V6(v) => v.capacity() * size_of::<Nlri<ipnet::Ipv6Net>>(),
    };
    match m {
        Message::Update(u) => {
            let attrs = u.attributes.as_ref().map_or(0, |a| {
                let path = |s: &Segment| size_of::<Segment>() + s.asns.len() * 4;
                a.as_path.0.iter().map(path).sum::<usize>()
                    + a.communities.len() * 4
                    + a.ext_communities.len() * 8
                    + a.large_communities.len() * 12
                    + a.cluster_list.len() * 4
                    + a.unknown.iter().map(|x| size_of::<UnknownAttr>() + x.value.capacity()).sum::<usize>()
            });
            let faults = u.faults.iter().map(|f| size_of::<AttrFault>() + f.what.capacity()).sum::<usize>();
            let gone = u.withdrawn.iter().map(prefixes).sum::<usize>();
            attrs + faults + gone + u.reach.iter().map(|r| prefixes(&r.prefixes)).sum::<usize>()
        }
        Message::Open(o) => {
            let families = |c: &Capability| match c {
                Capability::GracefulRestart { families, .. } => families.capacity() * size_of::<GrFamily>(),
                Capability::AddPath(v) => v.capacity() * 4,
                Capability::LongLivedGracefulRestart(v) => v.capacity() * 8,
                Capability::Fqdn { host, domain } => host.capacity() + domain.capacity(),
                Capability::Unknown { value, .. } => value.capacity(),
                _ => 0,
            };
            o.capabilities.capacity() * size_of::<Capability>()
                + o.capabilities.iter().map(families).sum::<usize>()
        }
        Message::Notification(n) => n.data.capacity(),
        Message::Keepalive | Message::RouteRefresh(_) => 0,
    }
}

/// The path a 2-octet session carries: AS4_PATH has no place for confederation segments (RFC 6793 section 3), so that
/// one behind other segments (which RFC 5065 knows nothing of) is lost with it.
fn as_an_old_speaker_carries(path: &AsPath) -> AsPath {
    if path.0.iter().all(|s| s.asns.iter().all(|n| *n <= u32::from(u16::MAX))) {
        return path.clone();
    }
    let mut kept = AsPath::default();
    for s in &path.0 {
        let confed = matches!(s.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet);
        let leading =
            kept.0.iter().all(|k| matches!(k.kind, SegmentKind::ConfedSequence | SegmentKind::ConfedSet));
        match kept.0.last_mut() {
            _ if confed && !leading => {}
            Some(last) if last.kind == SegmentKind::Sequence && s.kind == SegmentKind::Sequence => {
                last.asns.extend_from_slice(&s.asns);
            }
            _ => kept.0.push(s.clone()),
        }
    }
    kept
}

/// What must hold for any bytes at all.
pub(crate) fn check_any(frame: &[u8], cx: &WireCx) {
    match Message::parse(frame, cx) {
        Err(e) => check_refusal(&e, frame),
        Ok(m) => {
            assert!(weight(&m) <= 64 * frame.len() + 4_096, "{} octets from {}", weight(&m), frame.len());
            // The canonical form says the same, and what it says has one form.
            let Some(canonical) = emit(&m, cx) else { return };
            let again = Message::parse(&canonical, cx).unwrap_or_else(|e| panic!("{e}: {m:?}"));
            let mut plain = m.clone();
            if let Message::Update(u) = &mut plain {
                u.faults.clear();
                if let Some(a) = u.attributes.as_mut().filter(|_| !cx.four_octet_as) {
                    a.as_path = as_an_old_speaker_carries(&a.as_path);
                }
            }
            assert_eq!(again, plain, "{frame:02x?} -> {canonical:02x?}");
            assert_eq!(emit(&again, cx), emit(&plain, cx));
        }
    }
}
