//! Real routes through real sessions: what archives of RIPE RIS hold goes into `brindle-bgpd` and must come out at a second
//! peer, each route with the octets of each attribute as they came, but for what a reflector has to change (RFC 4456, 6793).
//! The judge here reads octets and knows nothing of our codec; integration/oracles asks other people's decoders as well.
//!
//! `BRINDLE_MRT=FILE` takes another archive (MRT, plain, gzip or bzip2) in place of the fixtures.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use brindle_integration::{
    bins::bin,
    mrt::{self, as_path, fields, next_attribute, prefixes},
    replay,
};

/// Flags and value by type. The next hop is 3 for either family.
type Attributes = BTreeMap<u8, (u8, Vec<u8>)>;
/// Family (1, 2) and prefix as on the wire.
type Key = (u8, Vec<u8>);
type Table = HashMap<Key, Arc<Attributes>>;

/// Applies an UPDATE to a table; `None` if it cannot be read.
fn apply(table: &mut Table, frame: &[u8], wide: bool) -> Option<()> {
    let [withdrawn, mut rest, announced] = fields(frame)?;
    let mut all = Attributes::new();
    let (mut v6, mut v6_gone) = (None, vec![]);
    while let Some(a) = next_attribute(&mut rest)? {
        match (a.code, a.value) {
            (14, [0, 2, 1, n, more @ ..]) => {
                let (hop, more) = more.split_at_checked(usize::from(*n))?;
                v6 = Some((hop.to_vec(), prefixes(more.get(1..)?)?));
            }
            (15, [0, 2, 1, list @ ..]) => v6_gone = prefixes(list)?,
            (14 | 15, _) => {}
            // Of a repeated attribute the first counts (RFC 7606 section 3).
            (code, value) => {
                all.entry(code).or_insert_with(|| (a.flags & 0xe0, value.to_vec()));
            }
        }
    }
    for p in prefixes(withdrawn)? {
        table.remove(&(1, p));
    }
    for p in v6_gone {
        table.remove(&(2, p));
    }
    // AS 0 in a path: as if the routes were withdrawn (RFC 7607).
    let with_zero = match all.get(&2) {
        Some((_, path)) => as_path(path, wide)?.iter().any(|(_, list)| list.contains(&0)),
        None => false,
    };
    if with_zero {
        for p in prefixes(announced)? {
            table.remove(&(1, p));
        }
        if let Some((_, list)) = v6 {
            list.into_iter().for_each(|p| drop(table.remove(&(2, p))));
        }
        return Some(());
    }
    if let Some((hop, list)) = v6 {
        let mut all = all.clone();
        all.insert(3, (0x40, hop));
        let all = Arc::new(normal(all, wide)?);
        table.extend(list.into_iter().map(|p| ((2, p), Arc::clone(&all))));
    }
    let announced = prefixes(announced)?;
    if !announced.is_empty() {
        let all = Arc::new(normal(all, wide)?);
        table.extend(announced.into_iter().map(|p| ((1, p), Arc::clone(&all))));
    }
    Some(())
}

/// Four octets for each AS, and no order where there is none.
fn normal(mut all: Attributes, wide: bool) -> Option<Attributes> {
    // AS 0 aggregates nothing (RFC 7607).
    let zero = |v: &[u8]| v.iter().take(v.len().saturating_sub(4)).all(|octet| *octet == 0);
    all.retain(|code, (_, v)| !matches!(code, 7 | 18) || !zero(v));
    let count = |path: &[(u8, Vec<u32>)]| {
        path.iter().map(|(kind, list)| if *kind == 2 { list.len() } else { usize::from(*kind == 1) }).sum()
    };
    let new = (all.remove(&17), all.remove(&18));
    let mut merge = !wide;
    if let Some((_, value)) = all.get_mut(&7)
        && !wide
    {
        let asn = [0, 0, value[0], value[1]];
        match &new.1 {
            Some((_, v)) if asn == [0, 0, 0x5b, 0xa0] => *value = v.clone(),
            // Somebody on the way aggregated again: neither is to be believed (RFC 6793 section 4.2.3).
            Some(_) => merge = false,
            None => *value = [&asn, &value[2..]].concat(),
        }
    }
    if let Some((_, value)) = all.get_mut(&2) {
        let mut path = as_path(value, wide)?;
        if let Some((_, v)) = &new.0
            && merge
        {
            let tail = as_path(v, true)?;
            let (have, tail_count): (usize, usize) = (count(&path), count(&tail));
            if have >= tail_count {
                let mut keep = have - tail_count;
                let mut head = vec![];
                for (kind, list) in path {
                    if keep == 0 {
                        break;
                    }
                    let n = if kind == 2 { keep.min(list.len()) } else { list.len() };
                    keep -= if kind == 2 { n } else { usize::from(kind == 1) };
                    head.push((kind, list[..n].to_vec()));
                }
                path = [head, tail].concat();
            }
        }
        let mut joined: Vec<(u8, Vec<u32>)> = vec![];
        for (kind, list) in path {
            match joined.last_mut() {
                Some((2, last)) if kind == 2 => last.extend(list),
                _ => joined.push((kind, list)),
            }
        }
        *value = format!("{joined:?}").into_bytes();
    }
    for (code, size) in [(8, 4), (16, 8), (32, 12)] {
        if let Some((_, value)) = all.get_mut(&code) {
            let mut list: Vec<&[u8]> = value.chunks(size).collect();
            list.sort_unstable();
            list.dedup();
            *value = list.concat();
        }
    }
    Some(all)
}

/// What a client of the reflector is to be told of a route.
fn reflected(all: &Attributes) -> Attributes {
    let mut all = all.clone();
    all.entry(5).or_insert_with(|| (0x40, replay::LOCAL_PREF.to_be_bytes().to_vec()));
    all.entry(9).or_insert_with(|| (0x80, replay::SENDER.octets().to_vec()));
    let clusters = all.entry(10).or_insert_with(|| (0x80, vec![]));
    clusters.1 = [&replay::REFLECTOR.octets()[..], &clusters.1].concat();
    // The link-local half of a next hop is for who is on that link (RFC 2545 section 3).
    if let Some((_, hop)) = all.get_mut(&3) {
        hop.truncate(16);
    }
    // Unknown to us: optional ones that are not transitive end here, the others get Partial.
    all.retain(|code, (flags, _)| *code <= 35 || *flags & 0xc0 != 0x80);
    for (code, (flags, _)) in &mut all {
        if *code > 35 && *flags & 0xc0 == 0xc0 {
            *flags |= 0x20;
        }
    }
    all
}

/// Whether routes with this next hop are of any use (RFC 4271 section 6.3).
fn unicast(hop: &[u8]) -> bool {
    match *hop {
        [first, ..] if hop.len() == 4 => first != 0 && first < 224,
        [first, ..] => first != 0xff && hop.iter().any(|octet| *octet != 0),
        [] => false,
    }
}

/// Sends everything of one width; returns how many routes came out right.
fn exact(archive: &Path, all: &[mrt::Archived], wide: bool) -> usize {
    let frames: Vec<Vec<u8>> = all.iter().filter(|a| a.wide == wide).map(|a| a.frame.clone()).collect();
    if frames.is_empty() {
        return 0;
    }
    let mut sent = Table::new();
    for frame in &frames {
        apply(&mut sent, frame, wide).unwrap_or_else(|| panic!("unreadable: {frame:02x?}"));
    }
    let mut memo: HashMap<*const Attributes, Arc<Attributes>> = HashMap::new();
    let want: Table = sent
        .iter()
        .filter(|(_, a)| a.get(&3).is_some_and(|(_, hop)| unicast(hop)))
        .map(|(key, a)| {
            let to = memo.entry(Arc::as_ptr(a)).or_insert_with(|| Arc::new(reflected(a)));
            (key.clone(), Arc::clone(to))
        })
        .collect();
    let mut got = Table::new();
    let outcome = replay::through(&bin("brindle-bgpd"), &frames, wide, |some| {
        for frame in some {
            apply(&mut got, frame, true).ok_or_else(|| format!("unreadable output: {frame:02x?}"))?;
        }
        if got.len() != want.len() {
            return Err(format!(
                "{} routes, {} expected; {}",
                got.len(),
                want.len(),
                difference(&got, &want)
            ));
        }
        if got == want { Ok(()) } else { Err(difference(&got, &want)) }
    });
    if let Err(e) = outcome {
        panic!("{} (AS numbers of {} octets): {e}", archive.display(), if wide { 4 } else { 2 });
    }
    want.len()
}

/// The first route that is missing, too much or other than it should be.
fn difference(got: &Table, want: &Table) -> String {
    let missing = want.iter().find(|(k, w)| got.get(*k) != Some(w));
    let extra = got.iter().find(|(k, _)| !want.contains_key(*k));
    match (missing, extra) {
        (Some((k, w)), _) => format!("{k:?}: expected {w:02x?}\n found {:02x?}", got.get(k)),
        (None, Some((k, g))) => format!("{k:?}: nobody sent it: {g:02x?}"),
        (None, None) => String::new(),
    }
}

#[test]
fn every_route_of_an_archive_comes_out_as_it_went_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mrt");
    let archives: Vec<PathBuf> = match std::env::var_os("BRINDLE_MRT") {
        Some(file) => vec![file.into()],
        None => ["ris-rrc03-2010.gz", "ris-rrc06-2015.gz"].map(|f| folder.join(f)).to_vec(),
    };
    for archive in archives {
        let all = mrt::updates(&mrt::read(&archive).unwrap());
        let routes: usize = [true, false].into_iter().map(|wide| exact(&archive, &all, wide)).sum();
        assert!(routes > 100, "{}: {routes} routes are no test", archive.display());
    }
}
