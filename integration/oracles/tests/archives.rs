//! Real messages: the fixtures of bgpd/core, and every MRT file (plain or gzip) below the folder in `BRINDLE_MRT`.
//!
//! Where our reader and another both accept a message without a complaint, they must agree on what it means.

use std::{env, fs, io::Read, path::Path};

use brindle_bgpd_core::wire::WireCx;
use brindle_oracles::{bgpkit, netgauze, ours, rustbgpd};
use flate2::read::MultiGzDecoder;

#[derive(Debug, Default)]
struct Tally {
    updates: usize,
    prefixes: usize,
    /// We refused or found a fault.
    faulty: usize,
    /// Another refused or complained: rustbgpd, netgauze, bgpkit.
    refused: [usize; 3],
    compared: [usize; 3],
    different: Vec<String>,
}

impl Tally {
    fn add(&mut self, frame: &[u8], cx: &WireCx) {
        if frame.get(18) != Some(&2) {
            return;
        }
        self.updates += 1;
        let Ok((meaning, update)) = ours(frame, cx) else {
            self.faulty += 1;
            return;
        };
        self.prefixes += meaning.announced.len();
        if !update.faults.is_empty() {
            self.faulty += 1;
            return;
        }
        let answers = [
            rustbgpd::read(frame, cx).map(|(m, reaction)| (m, reaction.is_none())),
            netgauze::read(frame, cx).map(|(m, _)| (m, true)),
            bgpkit::read(frame, cx).map(|(m, warnings)| (m, warnings == 0)),
        ];
        for (i, (name, answer)) in ["rustbgpd", "netgauze", "bgpkit"].into_iter().zip(answers).enumerate() {
            match answer {
                Ok((theirs, true)) => {
                    self.compared[i] += 1;
                    // Only we rebuild the path and the aggregator of a 2-octet peer.
                    let (mut a, mut b) = (theirs, meaning.clone());
                    if !cx.four_octet_as {
                        (a.path, a.aggregator, b.path, b.aggregator) = (None, None, None, None);
                    }
                    if a != b {
                        self.different.push(format!("{name}: {a:?}\nours: {b:?}\n{frame:02x?}"));
                    }
                }
                Ok((_, false)) | Err(_) => self.refused[i] += 1,
            }
        }
    }

    fn check(&self, what: &str) {
        println!(
            "{what}: {} updates, {} prefixes, {} with faults; compared {:?}, refused by the other {:?}, different {}",
            self.updates,
            self.prefixes,
            self.faulty,
            self.compared,
            self.refused,
            self.different.len()
        );
        let some: Vec<&str> = self.different.iter().take(3).map(String::as_str).collect();
        assert!(some.is_empty(), "{}", some.join("\n"));
    }
}

#[test]
fn fixtures_mean_the_same_to_everybody() {
    let mut tally = Tally::default();
    for file in ["tcpdump", "netgauze", "mrt"] {
        let path = format!("{}/../../bgpd/core/tests/fixtures/{file}.hex", env!("CARGO_MANIFEST_DIR"));
        for line in fs::read_to_string(path).expect("the fixtures").lines() {
            let Some((session, hex)) = line.split_once(' ').filter(|(s, _)| *s != "#") else { continue };
            let octet = |i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex");
            let frame: Vec<u8> = (0..hex.len()).step_by(2).map(octet).collect();
            let cx = WireCx {
                four_octet_as: session.starts_with('4'),
                extended_message: true,
                add_path: [session.ends_with('+'); 2],
                ibgp: true,
            };
            tally.add(&frame, &cx);
        }
    }
    tally.check("fixtures");
    assert!(tally.compared.iter().all(|n| *n > 50));
}

#[test]
fn archives_mean_the_same_to_everybody() {
    let Some(folder) = env::var_os("BRINDLE_MRT") else {
        println!("BRINDLE_MRT names no folder: no archives compared");
        return;
    };
    let mut tally = Tally::default();
    walk(Path::new(&folder), &mut tally);
    tally.check("archives");
    assert!(tally.updates > 0, "no MRT file there");
}

fn walk(path: &Path, tally: &mut Tally) {
    if path.is_dir() {
        let mut entries: Vec<_> =
            fs::read_dir(path).expect("a readable folder").flatten().map(|e| e.path()).collect();
        entries.sort();
        entries.iter().for_each(|e| walk(e, tally));
        return;
    }
    let Ok(raw) = fs::read(path) else { return };
    let mut bytes = Vec::new();
    if raw.starts_with(&[0x1f, 0x8b]) {
        // A cut file gives what it has.
        let _ = MultiGzDecoder::new(&raw[..]).read_to_end(&mut bytes);
    } else {
        bytes = raw;
    }
    records(&bytes, tally);
}

/// BGP4MP and BGP4MP_ET records with a message in them (RFC 6396 section 4.4, RFC 8050).
fn records(mut bytes: &[u8], tally: &mut Tally) {
    while let Some((head, rest)) = bytes.split_first_chunk::<12>() {
        let (kind, subtype) =
            (u16::from_be_bytes([head[4], head[5]]), u16::from_be_bytes([head[6], head[7]]));
        let len = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((mut record, more)) = rest.split_at_checked(len) else { return };
        bytes = more;
        if kind == 17 {
            record = record.get(4..).unwrap_or_default();
        }
        let (width, add_path) = match (kind, subtype) {
            (16 | 17, 1) => (2, false),
            (16 | 17, 4) => (4, false),
            (16 | 17, 8) => (2, true),
            (16 | 17, 9) => (4, true),
            _ => continue,
        };
        let address = match record.get(2 * width + 2..2 * width + 4) {
            Some([0, 1]) => 4,
            Some([0, 2]) => 16,
            _ => continue,
        };
        let frame = record.get(2 * width + 4 + 2 * address..).unwrap_or_default();
        // Collectors peer externally, but some archives hold internal sessions: read everything.
        let cx =
            WireCx { four_octet_as: width == 4, extended_message: true, add_path: [add_path; 2], ibgp: true };
        tally.add(frame, &cx);
    }
}
