//! The archive of what peers send (MRT, RFC 6396) of the real `brindle-bgpd`: who is at both ends of each record, a disk
//! that is full for a while, and a run before this one that ended in the middle of a record. Needs root and Debian's bird2.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use brindle_integration::peer::{Bird, Brindle, Segment, eventually};

/// BIRD comes from a range in which any AS is welcome.
fn config(directory: &Path) -> String {
    format!(
        "asNumber: 64512\nrouterID: 10.99.0.1\nlisten: [\"10.99.0.1:179\"]\nacceptAll: true\nmrt: {{directory: {}, \
         updatesInterval: 86400}}\ndynamic:\n  - {{name: guest, range: 10.99.0.0/24, template: {{holdTime: 3}}}}\n",
        directory.display()
    )
}

const BIRD: &str = "
protocol static { ipv4; route 10.2.0.0/26 blackhole; }
protocol bgp v4 { local as 64513; neighbor 10.99.0.1 as 64512; hold time 3; connect delay time 1; connect retry time 1;
  error wait time 1, 2; ipv4 { import all; export where source = RTS_STATIC; }; }
";

/// What stands before the message in a record of BGP4MP_ET: both AS numbers and addresses; and its subtype.
type Head = (u16, [u32; 2], [Ipv4Addr; 2]);

/// The records of a file; `Err` if it does not end with a whole one.
fn records(file: &Path) -> Result<Vec<Head>, String> {
    let data = fs::read(file).map_err(|e| e.to_string())?;
    let mut rest = &data[..];
    let mut all = vec![];
    while !rest.is_empty() {
        let at = data.len() - rest.len();
        let cut = || format!("{} is cut at {at} of {}", file.display(), data.len());
        let (head, more) = rest.split_at_checked(12).ok_or_else(cut)?;
        let len = usize::try_from(word(head, 8)).expect("it fits");
        let (body, more) = more.split_at_checked(len).ok_or_else(cut)?;
        assert_eq!(&head[4..7], [0, 17, 0], "BGP4MP_ET: {head:?}");
        let address = |at| Ipv4Addr::from_bits(word(body, at));
        all.push((u16::from(head[7]), [word(body, 4), word(body, 8)], [address(16), address(20)]));
        rest = more;
    }
    Ok(all)
}

fn word(data: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(data[at..at + 4].try_into().expect("four octets"))
}

/// The files of a directory by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(directory).expect("it is there").map(|e| e.expect("it is there").path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.display().to_string().contains("/updates.")).collect();
    all.sort();
    all
}

fn metric(us: &Brindle<'_>, name: &str) -> u64 {
    let text = us.metrics();
    let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}: {text}")).parse().expect("a number")
}

#[test]
fn each_record_says_who_is_at_both_ends() {
    let segment = Segment::new(2);
    let directory = segment.dir(1).join("mrt");
    let us = Brindle::start(&segment, 1, &config(&directory));
    let them = Bird::start(&segment, 2, BIRD);
    us.route("10.2.0.0/26", true);
    let all = || -> Result<Vec<Head>, String> {
        let all = files(&directory).iter().map(|f| records(f)).collect::<Result<Vec<_>, _>>()?;
        Ok(all.concat())
    };
    let changes = |all: &[Head]| all.iter().filter(|r| r.0 == 5).count();
    // The end of the session is told with the ends it had.
    let before = changes(&eventually("the records so far", || {
        let all = all()?;
        if changes(&all) > 3 { Ok(all) } else { Err(format!("{all:?}")) }
    }));
    them.birdc("disable v4").expect("BIRD answers");
    us.route("10.2.0.0/26", false);
    let of_each = eventually("the change of state at the end", || {
        let mut of_each: BTreeMap<u16, Vec<Head>> = BTreeMap::new();
        let all = all()?;
        let ended = changes(&all) > before;
        for record in all {
            of_each.entry(record.0).or_default().push(record);
        }
        let ready = ended && of_each.get(&4).is_some_and(|m| m.len() > 3);
        if ready { Ok(of_each) } else { Err(format!("{of_each:?}")) }
    });
    let ends = ([64_513, 64_512], [Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 1)]);
    for (_, asns, addresses) in &of_each[&4] {
        assert_eq!((*asns, *addresses), ends, "{of_each:?}");
    }
    // Of the very first one nothing is known: nobody has said a word.
    let known = of_each[&5].iter().filter(|(_, asns, addresses)| (*asns, *addresses) == ends).count();
    assert!(known >= 2, "{of_each:?}");
}

/// A disk of its own; gone with this.
struct Disk(PathBuf);

impl Disk {
    fn new(at: PathBuf) -> Self {
        fs::create_dir_all(&at).expect("the folder is ours");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&at).status();
        assert!(done.expect("mount is installed").success());
        Self(at)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).expect("there is room for a name");
        for part in [4096, 1] {
            while file.write_all(&vec![0x5a; part]).is_ok() {}
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Still used by a daemon that is killed later.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_what_came_meanwhile_and_no_more() {
    let segment = Segment::new(2);
    let disk = Disk::new(segment.dir(1).join("mrt"));
    let us = Brindle::start(&segment, 1, &config(&disk.0));
    let them = Bird::start(&segment, 2, BIRD);
    us.route("10.2.0.0/26", true);
    assert_eq!(metric(&us, "brindle_bgp_mrt_writing"), 1);
    disk.fill();
    // KEEPALIVEs come every second; the page that is begun takes some more of them.
    let attempt = || {
        // Whatever BIRD sends again is a record more.
        them.birdc("reload out v4")?;
        match metric(&us, "brindle_bgp_mrt_writing") {
            0 => Ok(()),
            _ => Err("it is written".to_owned()),
        }
    };
    eventually("that the archive cannot be written", attempt);
    assert!(us.daemon.log().contains("the MRT archive cannot be written"));
    fs::remove_file(disk.0.join("filler")).expect("it is there");
    eventually("that it is written again", || match metric(&us, "brindle_bgp_mrt_writing") {
        1 => Ok(()),
        _ => Err(us.daemon.log()),
    });
    let lost = metric(&us, "brindle_bgp_mrt_lost_records_total");
    assert!(lost > 0, "{}", us.metrics());
    let [file] = &files(&disk.0)[..] else { panic!("one file: {:?}", files(&disk.0)) };
    // It is being written: its end may be half a record.
    let before = eventually("whole records", || Ok(records(file)?.len()));
    eventually("that it goes on", || {
        let now = records(file)?.len();
        if now > before { Ok(()) } else { Err(format!("{now} records")) }
    });
    let log = us.daemon.log();
    let of = |words: &str| log.matches(words).count();
    assert_eq!(of("the MRT archive cannot be written"), of("the MRT archive is written again"), "{log}");
}

#[test]
fn a_run_after_one_that_ended_in_the_middle_of_a_record_begins_another_file() {
    let segment = Segment::new(2);
    let directory = segment.dir(1).join("mrt");
    let mut us = Brindle::start(&segment, 1, &config(&directory));
    let _them = Bird::start(&segment, 2, BIRD);
    us.route("10.2.0.0/26", true);
    us.daemon.signal("KILL");
    eventually("its end", || if us.status().is_err() { Ok(()) } else { Err("it runs".to_owned()) });
    let first = files(&directory).pop().expect("a file");
    let whole = fs::read(&first).expect("it is there");
    assert!(records(&first).expect("whole records").len() > 2);
    let cut = [&whole[..], &whole[..20]].concat();
    fs::write(&first, &cut).expect("the folder is ours");
    us.restart(&config(&directory));
    us.route("10.2.0.0/26", true);
    eventually("records of the second run", || {
        let last = files(&directory).pop().expect("a file");
        let of_it = if last == first { 0 } else { records(&last)?.len() };
        if of_it > 2 { Ok(()) } else { Err(format!("{of_it} records in {}", last.display())) }
    });
    assert_eq!(fs::read(&first).expect("it is there"), cut, "nothing follows half a record");
}
