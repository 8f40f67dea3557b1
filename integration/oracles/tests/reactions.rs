//! Malformed attributes: our reaction beside rustbgpd-wire's, the one other reader with a verdict after RFC 7606.
//!
//! Every attribute we understand x length 0 to 24 x filling x flags x kind of session. Where the two differ the reason
//! is known and written down here; a new difference is a failure.

use std::collections::BTreeMap;

use brindle_bgpd_core::wire::{Reaction, WireCx, attr};
use brindle_oracles::{ours, rustbgpd};

fn frame(attrs: &[u8]) -> Vec<u8> {
    let nlri = [16, 10, 1];
    let mut v = vec![0xff; 16];
    v.extend(u16::try_from(23 + attrs.len() + nlri.len()).expect("short").to_be_bytes());
    v.extend([2, 0, 0]);
    v.extend(u16::try_from(attrs.len()).expect("short").to_be_bytes());
    v.extend(attrs);
    v.extend(nlri);
    v
}

fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    [&[flags, code, u8::try_from(value.len()).expect("short")][..], value].concat()
}

/// Our reaction and theirs.
type Pair = (Option<Reaction>, Option<Reaction>);

/// Why the two differ; `None` is a difference nobody has looked at. `fill` is the octet the value is made of.
fn why(code: u8, pair: Pair, flags: u8, fill: u8, cx: &WireCx) -> Option<&'static str> {
    use Reaction::{Discard, SessionReset, TreatAsWithdraw};
    let out_of_place = match code {
        5 | 9 | 10 => !cx.ibgp,
        17 | 18 => cx.four_octet_as,
        _ => false,
    };
    Some(match pair {
        (Some(Discard), None) if out_of_place => "we list what was out of place though well-formed",
        (Some(Discard), Some(TreatAsWithdraw)) if out_of_place => {
            "out of place: we discard it unread, they look at it first (RFC 7606 7.5, 7.9, 7.10, RFC 6793 4.1)"
        }
        (None | Some(Discard), Some(TreatAsWithdraw)) if matches!(code, 2 | 17) && fill == 1 => {
            "a set in the path: we accept it, they follow the SHOULD of RFC 9774"
        }
        (None, Some(TreatAsWithdraw)) if matches!(code, 4 | 9 | 10) && flags & 0x20 != 0 => {
            "Partial on a non-transitive attribute: RFC 7606 3 (c) names the two other bits only"
        }
        (Some(Discard), Some(SessionReset)) if matches!(code, 14 | 15) => {
            "a family that does not exist: we ignore it, they reset"
        }
        _ => return None,
    })
}

#[test]
fn reactions_agree_but_for_known_reasons() {
    let mut differences: BTreeMap<String, usize> = BTreeMap::new();
    let (mut vectors, mut unknown) = (0, 0);
    for (four_octet_as, ibgp) in [(true, true), (true, false), (false, true), (false, false)] {
        let cx = WireCx { four_octet_as, ibgp, ..WireCx::default() };
        let path: &[u8] = if four_octet_as { &[2, 1, 0, 0, 0xfd, 0xe9] } else { &[2, 1, 0xfd, 0xe9] };
        let sound = [
            (1, attribute(0x40, 1, &[0])),
            (2, attribute(0x40, 2, path)),
            (3, attribute(0x40, 3, &[10, 0, 0, 1])),
            (5, attribute(0x40, 5, &[0, 0, 0, 100])),
        ];
        for row in &attr::TABLE {
            for (len, fill) in (0..=24).flat_map(|len| [0u8, 1, 2, 10, 0xff].map(|fill| (len, fill))) {
                for flags in [row.flags, row.flags ^ 0x40, row.flags ^ 0x80, row.flags | 0x20] {
                    let rest = sound.iter().filter(|(c, _)| *c != row.code && (*c != 5 || ibgp));
                    let mut attrs: Vec<u8> = rest.flat_map(|(_, a)| a.clone()).collect();
                    attrs.extend(attribute(flags, row.code, &vec![fill; len]));
                    let frame = frame(&attrs);
                    let mine = match ours(&frame, &cx) {
                        Ok((_, u)) => u.faults.iter().map(|f| f.reaction).max(),
                        Err(_) => Some(Reaction::SessionReset),
                    };
                    let theirs = match rustbgpd::read(&frame, &cx) {
                        Ok((_, reaction)) => reaction,
                        Err(_) => Some(Reaction::SessionReset),
                    };
                    vectors += 1;
                    if mine != theirs {
                        let reason = why(row.code, (mine, theirs), flags, fill, &cx).unwrap_or_else(|| {
                            unknown += 1;
                            "NOT KNOWN"
                        });
                        let key = format!("{row:?}: {mine:?}, not {theirs:?}: {reason}");
                        *differences.entry(key).or_default() += 1;
                    }
                }
            }
        }
    }
    println!("{vectors} vectors");
    for (key, n) in &differences {
        println!("{n:5}  {key}");
    }
    assert_eq!(unknown, 0, "differences without a reason");
}
