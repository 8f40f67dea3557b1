//! RFC 7606 as a table: every attribute we understand x every fault x every position x every kind of session.
//!
//! The expectations are written out here from the RFCs, independently of the codec's own table; the two must list
//! the same attributes. Position must never matter (FRR 8.4 for one gets it right only for the last attribute), and
//! of several errors the strongest decides.

#![expect(clippy::unwrap_used, reason = "a test")]

use Reaction::{Discard, SessionReset, TreatAsWithdraw};
use brindle_bgpd_core::wire::{Message, Reaction, Update, WireCx, attr};

/// Flags a well-known, an optional transitive and an optional non-transitive attribute must have.
const WK: u8 = 0x40;
const OT: u8 = 0xc0;
const ON: u8 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Everywhere,
    /// From an external peer: discarded, whatever is in it.
    Internal,
    /// From a peer with 4-octet AS numbers: discarded, whatever is in it.
    TwoOctet,
}

struct Case {
    code: u8,
    flags: u8,
    place: Where,
    /// What a sound value looks like with 4-octet and with 2-octet AS numbers.
    sound: [&'static [u8]; 2],
    /// Malformed values, whatever the width of AS numbers.
    bad: &'static [&'static [u8]],
    /// RFC 7606 sections 7.1 to 7.15, 6793 section 6, 8092 section 6, 9234 section 5.
    on_error: Reaction,
}

const PATH4: &[u8] = &[2, 2, 0, 0, 0xfd, 0xe9, 0, 0, 0xfd, 0xea];
const PATH2: &[u8] = &[2, 2, 0xfd, 0xe9, 0xfd, 0xea];
const MP6: &[u8] =
    &[0, 2, 1, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 32, 0x20, 1, 0xd, 0xb8];

const CASES: &[Case] = &[
    Case {
        code: 1,
        flags: WK,
        place: Where::Everywhere,
        sound: [&[0]; 2],
        bad: &[&[], &[0, 0], &[3], &[255]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 2,
        flags: WK,
        place: Where::Everywhere,
        sound: [PATH4, PATH2],
        bad: &[
            &[2],
            &[2, 0],
            &[2, 5, 0, 0, 0, 1],
            &[0, 1, 0, 0, 0, 1],
            &[5, 1, 0, 0, 0, 1],
            &[255, 1, 0, 0, 0, 1],
            &[2, 2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[2, 1, 0, 0, 0, 1, 9],
        ],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 3,
        flags: WK,
        place: Where::Everywhere,
        sound: [&[10, 0, 0, 1]; 2],
        bad: &[
            &[],
            &[10, 0, 0],
            &[10, 0, 0, 1, 2],
            &[0; 16],
            &[0, 0, 0, 0],
            &[224, 0, 0, 5],
            &[255, 255, 255, 255],
        ],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 4,
        flags: ON,
        place: Where::Everywhere,
        sound: [&[0, 0, 0, 9]; 2],
        bad: &[&[], &[1], &[0, 0, 1], &[0; 5]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 5,
        flags: WK,
        place: Where::Internal,
        sound: [&[0, 0, 0, 9]; 2],
        bad: &[&[], &[0, 1], &[0; 5]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 6,
        flags: WK,
        place: Where::Everywhere,
        sound: [&[]; 2],
        bad: &[&[0], &[1, 2, 3]],
        on_error: Discard,
    },
    Case {
        code: 7,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[0, 0, 0xfd, 0xe9, 1, 1, 1, 1], &[0xfd, 0xe9, 1, 1, 1, 1]],
        bad: &[&[], &[1, 2, 3, 4, 5], &[1; 7], &[1; 9]],
        on_error: Discard,
    },
    Case {
        code: 8,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[0, 1, 0, 2, 0, 1, 0, 3]; 2],
        bad: &[&[], &[1], &[1; 5], &[1; 7]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 9,
        flags: ON,
        place: Where::Internal,
        sound: [&[1, 1, 1, 1]; 2],
        bad: &[&[], &[1], &[1; 3], &[1; 5]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 10,
        flags: ON,
        place: Where::Internal,
        sound: [&[1, 1, 1, 1, 2, 2, 2, 2]; 2],
        bad: &[&[], &[1; 3], &[1; 5]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 14,
        flags: ON,
        place: Where::Everywhere,
        sound: [MP6; 2],
        bad: &[
            &[],
            &[0, 2, 1, 0],
            &[0, 2, 1, 5, 1, 2, 3, 4, 5, 0],
            &[0, 2, 1, 200, 1, 2],
            &[0, 2, 1, 4, 1, 2, 3, 4, 0],
            &[0, 1, 1, 16, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 0],
            &[0, 1, 1, 4, 10, 0, 0, 1, 0, 33, 1, 2, 3, 4, 5],
            &[0, 1, 1, 4, 10, 0, 0, 1, 0, 24, 1, 2],
        ],
        on_error: SessionReset,
    },
    Case {
        code: 15,
        flags: ON,
        place: Where::Everywhere,
        sound: [&[0, 2, 1, 8, 0x20]; 2],
        bad: &[&[], &[0, 2], &[0, 2, 1, 129, 1], &[0, 2, 1, 16, 1]],
        on_error: SessionReset,
    },
    Case {
        code: 16,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[0, 2, 0xfd, 0xe9, 0, 0, 0, 1]; 2],
        bad: &[&[], &[1; 7], &[1; 12]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 17,
        flags: OT,
        place: Where::TwoOctet,
        sound: [PATH4; 2],
        bad: &[&[], &[2], &[2, 0], &[2, 5, 0, 0, 0, 1], &[9, 1, 0, 0, 0, 1], &[2, 1, 0, 0, 0, 0]],
        on_error: Discard,
    },
    Case {
        code: 18,
        flags: OT,
        place: Where::TwoOctet,
        sound: [&[0, 1, 0, 0, 1, 1, 1, 1]; 2],
        bad: &[&[], &[1; 6], &[1; 9], &[0, 0, 0, 0, 1, 1, 1, 1]],
        on_error: Discard,
    },
    Case {
        code: 25,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[7; 20]; 2],
        bad: &[&[], &[1; 19], &[1; 24]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 32,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[7; 24]; 2],
        bad: &[&[], &[1; 11], &[1; 13]],
        on_error: TreatAsWithdraw,
    },
    Case {
        code: 35,
        flags: OT,
        place: Where::Everywhere,
        sound: [&[0, 0, 0xfd, 0xe9]; 2],
        bad: &[&[], &[1], &[1; 8]],
        on_error: TreatAsWithdraw,
    },
];

fn contexts() -> impl Iterator<Item = WireCx> {
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .map(|(four_octet_as, ibgp)| WireCx { four_octet_as, ibgp, ..WireCx::default() })
}

impl Case {
    fn sound(&self, cx: &WireCx) -> &'static [u8] {
        self.sound[usize::from(!cx.four_octet_as)]
    }

    /// Discarded without a look at it?
    fn out_of_place(&self, cx: &WireCx) -> bool {
        match self.place {
            Where::Everywhere => false,
            Where::Internal => !cx.ibgp,
            Where::TwoOctet => cx.four_octet_as,
        }
    }

    /// RFC 7606 section 3 (c), and 5.3 for the MP attributes.
    fn on_flags(&self) -> Reaction {
        if matches!(self.code, 14 | 15) { SessionReset } else { TreatAsWithdraw }
    }

    fn malformed(&self, cx: &WireCx) -> impl Iterator<Item = (Vec<u8>, Reaction)> {
        let out_of_place = self.out_of_place(cx);
        let or_discard = move |r| if out_of_place { Discard } else { r };
        let values =
            self.bad.iter().map(move |v| (attribute(self.flags, self.code, v), or_discard(self.on_error)));
        let sound = self.sound(cx);
        let flags = [0x80, 0x40, 0xc0]
            .into_iter()
            .map(move |flip| (attribute(self.flags ^ flip, self.code, sound), or_discard(self.on_flags())));
        values.chain(flags)
    }
}

fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut v = vec![flags, code, u8::try_from(value.len()).unwrap()];
    v.extend_from_slice(value);
    v
}

/// An UPDATE that announces 10.1.0.0/16 with these attributes.
fn update(attrs: &[Vec<u8>], nlri: &[u8]) -> Vec<u8> {
    let attrs = attrs.concat();
    let mut v = vec![0xff; 16];
    v.extend_from_slice(&u16::try_from(23 + attrs.len() + nlri.len()).unwrap().to_be_bytes());
    v.extend_from_slice(&[2, 0, 0]);
    v.extend_from_slice(&u16::try_from(attrs.len()).unwrap().to_be_bytes());
    v.extend(attrs);
    v.extend_from_slice(nlri);
    v
}

const NLRI: &[u8] = &[16, 10, 1];

/// The mandatory attributes and a few more, without the one under test.
fn others(without: u8, cx: &WireCx) -> Vec<Vec<u8>> {
    CASES
        .iter()
        .filter(|c| matches!(c.code, 1 | 2 | 3 | 4 | 8 | 16 | 32) && c.code != without)
        .map(|c| attribute(c.flags, c.code, c.sound(cx)))
        .collect()
}

/// The attributes with `one` in front, in the middle and at the end.
fn positions(one: &[u8], others: &[Vec<u8>]) -> impl Iterator<Item = Vec<Vec<u8>>> {
    [0, others.len() / 2, others.len()].into_iter().map(move |at| {
        let mut list = others.to_vec();
        list.insert(at, one.to_vec());
        list
    })
}

/// What happened, and the update if the session survived.
fn outcome(frame: &[u8], cx: &WireCx) -> (Option<Reaction>, Option<Update>) {
    match Message::parse(frame, cx) {
        Err(e) => {
            assert_eq!(e.notification.code, 3, "{e}");
            (Some(SessionReset), None)
        }
        Ok(Message::Update(u)) => (u.faults.iter().map(|f| f.reaction).max(), Some(u)),
        Ok(other) => panic!("{other:?}"),
    }
}

/// The routes must be where the reaction puts them.
fn check(frame: &[u8], cx: &WireCx, code: u8, want: Reaction) {
    let (got, update) = outcome(frame, cx);
    assert_eq!(got, Some(want), "attribute {code}, {cx:?}, {frame:02x?}: {update:?}");
    let Some(u) = update else { return };
    assert!(u.faults.iter().any(|f| f.code == code), "attribute {code} is not named: {u:?}");
    let (announced, withdrawn): (usize, usize) =
        (u.reach.iter().map(|r| r.prefixes.len()).sum(), u.withdrawn.iter().map(|p| p.len()).sum());
    match want {
        Discard => assert!(announced > 0 && u.attributes.is_some(), "{u:?}"),
        _ => assert!(announced == 0 && withdrawn > 0 && u.attributes.is_none(), "{u:?}"),
    }
}

#[test]
fn both_tables_list_the_same_attributes() {
    let ours: Vec<u8> = attr::TABLE.iter().map(|r| r.code).collect();
    let here: Vec<u8> = CASES.iter().map(|c| c.code).collect();
    assert_eq!(ours, here);
    for (row, case) in attr::TABLE.iter().zip(CASES) {
        assert_eq!((row.flags, row.on_error), (case.flags, case.on_error), "{row:?}");
        assert_eq!(row.on_flags, case.on_flags(), "{row:?}");
    }
}

#[test]
fn sound_attributes_are_no_fault_at_any_position() {
    for cx in contexts() {
        for case in CASES {
            let one = attribute(case.flags, case.code, case.sound(&cx));
            for attrs in positions(&one, &others(case.code, &cx)) {
                let (got, u) = outcome(&update(&attrs, NLRI), &cx);
                assert_eq!(got, case.out_of_place(&cx).then_some(Discard), "attribute {}", case.code);
                assert!(!u.unwrap().reach.is_empty());
            }
        }
    }
}

#[test]
fn every_fault_has_its_reaction_at_every_position() {
    let mut vectors = 0;
    for cx in contexts() {
        for case in CASES {
            for (bad, want) in case.malformed(&cx) {
                for attrs in positions(&bad, &others(case.code, &cx)) {
                    check(&update(&attrs, NLRI), &cx, case.code, want);
                    vectors += 1;
                }
            }
        }
    }
    println!("{vectors} vectors");
    assert!(vectors > 1_000);
}

#[test]
fn of_two_errors_the_stronger_decides_in_either_order() {
    let mut vectors = 0;
    for cx in contexts() {
        for first in CASES {
            for second in CASES.iter().filter(|c| c.code != first.code) {
                let (Some((a, ra)), Some((b, rb))) =
                    (first.malformed(&cx).next(), second.malformed(&cx).last())
                else {
                    unreachable!("every attribute can be malformed");
                };
                let mut attrs = others(first.code, &cx);
                attrs.retain(|o| o[1] != second.code);
                attrs.insert(0, a);
                attrs.push(b);
                // Missing mandatory attributes cannot play a part: both are there, if malformed.
                check(
                    &update(&attrs, NLRI),
                    &cx,
                    if ra >= rb { first.code } else { second.code },
                    ra.max(rb),
                );
                vectors += 1;
            }
        }
    }
    println!("{vectors} vectors");
}

#[test]
fn a_repeated_attribute_is_discarded_whatever_is_in_it_unless_it_has_prefixes() {
    for cx in contexts() {
        for case in CASES.iter().filter(|c| !c.out_of_place(&cx)) {
            let first = attribute(case.flags, case.code, case.sound(&cx));
            let mut seconds: Vec<Vec<u8>> = case.malformed(&cx).map(|(bad, _)| bad).collect();
            seconds.push(first.clone());
            for second in seconds {
                for mut attrs in positions(&first, &others(case.code, &cx)) {
                    attrs.push(second.clone());
                    let want = if matches!(case.code, 14 | 15) { SessionReset } else { Discard };
                    check(&update(&attrs, NLRI), &cx, case.code, want);
                }
            }
        }
    }
}

#[test]
fn without_announced_prefixes_only_a_discard_keeps_the_session() {
    for cx in contexts() {
        for case in CASES.iter().filter(|c| c.code != 14) {
            for (bad, want) in case.malformed(&cx) {
                for attrs in positions(&bad, &others(case.code, &cx)) {
                    let (got, _) = outcome(&update(&attrs, &[]), &cx);
                    let want = if want == Discard { Discard } else { SessionReset };
                    assert_eq!(got, Some(want), "attribute {}, {cx:?}", case.code);
                }
            }
        }
    }
}

#[test]
fn an_attribute_that_overruns_the_block_withdraws_unless_it_has_prefixes() {
    for cx in contexts() {
        for case in CASES {
            let mut attrs = others(case.code, &cx);
            for cut in [
                vec![case.flags, case.code, 40, 1, 2, 3],
                vec![case.flags | 0x10, case.code, 0],
                vec![case.flags, case.code],
            ] {
                attrs.push(cut);
                let want = if matches!(case.code, 14 | 15) { SessionReset } else { TreatAsWithdraw };
                check(&update(&attrs, NLRI), &cx, case.code, want);
                attrs.pop();
            }
        }
        let mut attrs = others(0, &cx);
        attrs.push(vec![0x40]);
        check(&update(&attrs, NLRI), &cx, 0, TreatAsWithdraw);
    }
}

/// Attributes a plain speaker does not use, with the bodies that reset other implementations (CVE-2023-38802,
/// CVE-2023-4481 and their like): none may cost the session, and transitive ones travel on byte by byte.
#[test]
fn attributes_of_others_never_reset_and_are_never_changed() {
    for code in [20, 22, 23, 24, 26, 27, 28, 29, 33, 34, 36, 37, 38, 40, 128, 129, 213, 255] {
        for body in [&[][..], &[1], &[0xff; 64], &[1, 0xff, 0xff, 0, 0], &[0; 255]] {
            for flags in [OT, OT | 0x20, ON] {
                for cx in contexts() {
                    for attrs in positions(&attribute(flags, code, body), &others(0, &cx)) {
                        let (fault, u) = outcome(&update(&attrs, NLRI), &cx);
                        assert_eq!(fault, None);
                        let unknown = u.unwrap().attributes.unwrap().unknown;
                        if flags & 0x40 == 0 {
                            assert!(unknown.is_empty());
                        } else {
                            assert_eq!((unknown[0].flags, unknown[0].code), (0xe0, code));
                            assert_eq!(unknown[0].value, body);
                        }
                    }
                }
            }
        }
    }
}
