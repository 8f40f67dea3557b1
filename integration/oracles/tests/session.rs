//! Real routes through a real session: what archives hold goes into `brindle-bgpd` and must come out at a second peer as
//! three independent decoders see it, each comparing what it read on either side.
//!
//! `cargo xtask test oracles` builds the program and names it in `BRINDLE_BGPD`; `BRINDLE_MRT=FILE` takes another archive
//! in place of the fixtures.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use brindle_bgpd_core::wire::WireCx;
use brindle_oracles::{Meaning, Route, bgpkit, netgauze, rustbgpd};

// Not all of it is needed here.
#[allow(dead_code, reason = "made for another test")]
#[path = "../../src/mrt.rs"]
mod mrt;
#[path = "../../src/replay.rs"]
mod replay;

type Reader = fn(&[u8], &WireCx) -> Result<Meaning, String>;

const READERS: [(&str, Reader); 3] = [
    ("netgauze", |f, cx| netgauze::read(f, cx).map(|(m, _)| m)),
    ("rustbgpd", |f, cx| rustbgpd::read(f, cx).map(|(m, _)| m)),
    ("bgpkit", |f, cx| bgpkit::read(f, cx).map(|(m, _)| m)),
];

/// What one reader knows: the meaning of the message each route came in last, with the route alone in it.
struct Table {
    name: &'static str,
    read: Reader,
    routes: BTreeMap<Route, Meaning>,
}

impl Table {
    fn all() -> Vec<Self> {
        READERS.map(|(name, read)| Self { name, read, routes: BTreeMap::new() }).into()
    }

    fn apply(&mut self, frame: &[u8], wide: bool) -> Result<(), String> {
        let cx = WireCx { four_octet_as: wide, extended_message: true, add_path: [false; 2], ibgp: true };
        let m = (self.read)(frame, &cx).map_err(|e| format!("{}: {e}: {frame:02x?}", self.name))?;
        for route in &m.withdrawn {
            self.routes.remove(route);
        }
        for (route, hop) in &m.announced {
            let alone = Meaning { withdrawn: vec![], announced: vec![(*route, *hop)], ..m.clone() };
            self.routes.insert(*route, alone);
        }
        Ok(())
    }
}

/// What a client of the reflector is to be told (RFC 4456).
fn reflected(mut m: Meaning, wide: bool) -> Meaning {
    m.local_pref.get_or_insert(replay::LOCAL_PREF);
    m.originator_id.get_or_insert(replay::SENDER);
    m.cluster_list.insert(0, replay::REFLECTOR);
    without_merged(m, wide)
}

/// None of them builds the path and the aggregator of a 2-octet session anew, so these are not compared there.
fn without_merged(m: Meaning, wide: bool) -> Meaning {
    if wide { m } else { Meaning { path: None, aggregator: None, ..m } }
}

fn exact(archive: &Path, program: &Path, all: &[mrt::Archived], wide: bool) -> usize {
    let frames: Vec<Vec<u8>> = all.iter().filter(|a| a.wide == wide).map(|a| a.frame.clone()).collect();
    if frames.is_empty() {
        return 0;
    }
    let (mut sent, mut got) = (Table::all(), Table::all());
    for table in &mut sent {
        for frame in &frames {
            table.apply(frame, wide).expect("the archive can be read");
        }
    }
    let want: Vec<BTreeMap<Route, Meaning>> = sent
        .into_iter()
        .map(|t| t.routes.into_iter().map(|(r, m)| (r, reflected(m, wide))).collect())
        .collect();
    let outcome = replay::through(program, &frames, wide, |some| {
        // Each reads everything, whatever another thinks of it.
        for table in &mut got {
            for frame in some {
                table.apply(frame, true)?;
            }
        }
        for (table, want) in got.iter().zip(&want) {
            if let Some(r) = table.routes.keys().find(|r| !want.contains_key(r)) {
                return Err(format!("{}: {r:?} was never sent, or was withdrawn", table.name));
            }
            for (route, w) in want {
                let g = table.routes.get(route).cloned().map(|m| without_merged(m, wide));
                if g.as_ref() != Some(w) {
                    return Err(format!("{}: {route:?}: {g:?}\nexpected {w:?}", table.name));
                }
            }
        }
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{}: {e}", archive.display());
    }
    let routes = want.first().map_or(0, BTreeMap::len);
    println!(
        "{}: {} messages, {routes} routes the same to {}",
        archive.display(),
        frames.len(),
        READERS.len()
    );
    routes
}

#[test]
fn every_route_comes_out_as_independent_decoders_see_it() {
    let program = std::env::var_os("BRINDLE_BGPD")
        .map(PathBuf::from)
        .expect("BRINDLE_BGPD names the program: run `cargo xtask test oracles`");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/mrt");
    let archives: Vec<PathBuf> = match std::env::var_os("BRINDLE_MRT") {
        Some(file) => vec![file.into()],
        None => ["ris-rrc03-2010.gz", "ris-rrc06-2015.gz"].map(|f| folder.join(f)).to_vec(),
    };
    for archive in archives {
        let all = mrt::updates(&mrt::read(&archive).expect("the archive"));
        let routes: usize = [true, false].into_iter().map(|wide| exact(&archive, &program, &all, wide)).sum();
        assert!(routes > 100, "{}: {routes} routes are no test", archive.display());
    }
}
