//! The room kept for the journal, on disks of its own size.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use brindle_cni::{
    journal::{self, FOLDER, RESERVED, Record, keep_reserve},
    proto::Attachment,
};
use brindle_kernel::disk;

/// A small file system in memory.
struct Disk(PathBuf);

impl Disk {
    fn new(tag: &str, options: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bt-{}-disk-{tag}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&disk.0);
        assert!(mount.status().unwrap().success());
        disk
    }

    fn reserve(&self) -> u64 {
        fs::metadata(self.0.join("cni-reserve")).map_or(0, |m| m.len())
    }

    fn free(&self) -> u64 {
        disk::free(&self.0).unwrap()
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("filler")).unwrap();
        while file.write_all(&[0x5a; 4096]).is_ok() {}
    }

    /// A program that another test is just starting may have the file open for a moment more.
    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
        let limit = Instant::now() + Duration::from_secs(10);
        while self.free() < 2 * RESERVED {
            assert!(Instant::now() < limit, "{}", self.free());
            std::thread::yield_now();
        }
    }

    fn promise(&self, id: &str) -> std::io::Result<PathBuf> {
        let attachment = Attachment {
            container_id: id.into(),
            ifname: "eth0".into(),
            netns: String::new(),
            netns_id: String::new(),
            network: "net".into(),
            pod: None,
        };
        journal::write(&self.0.join(FOLDER), &Record { attachment, addresses_only: false })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn what_the_disk_can_spare_is_kept_and_no_more() {
    let disk = Disk::new("spare", "size=4m");
    assert_eq!(keep_reserve(&disk.0).unwrap(), RESERVED);
    assert_eq!((disk.reserve(), disk.free()), (RESERVED, (4 << 20) - RESERVED));
    // A part of it, and as much as the whole stays for others.
    let disk = Disk::new("part", "size=800k");
    let kept = keep_reserve(&disk.0).unwrap();
    assert!(kept > 0 && kept < RESERVED, "{kept}");
    assert_eq!((disk.reserve(), disk.free()), (kept, (800 << 10) - kept));
    assert!(disk.free() >= RESERVED, "{}", disk.free());
    assert_eq!(keep_reserve(&disk.0).unwrap(), kept);
    let disk = Disk::new("none", "size=256k");
    assert_eq!(keep_reserve(&disk.0).unwrap(), 0);
    assert_eq!(disk.free(), 256 << 10);
}

#[test]
fn a_full_disk_takes_promises_by_parts_of_it_until_there_is_room_again() {
    let disk = Disk::new("full", "size=4m");
    keep_reserve(&disk.0).unwrap();
    disk.fill();
    for n in 0..20 {
        disk.promise(&n.to_string()).unwrap();
    }
    let left = disk.reserve();
    assert!(left < RESERVED && left > RESERVED / 2, "{left}");
    assert_eq!(keep_reserve(&disk.0).unwrap(), left, "nothing is taken of a full disk");
    disk.empty();
    assert_eq!(keep_reserve(&disk.0).unwrap(), RESERVED);
    assert_eq!(journal::read(&disk.0.join(FOLDER)).unwrap().entries.len(), 20);
}

#[test]
fn where_inodes_lack_the_reserve_is_not_given_up_for_nothing() {
    let disk = Disk::new("inodes", "size=4m,nr_inodes=20");
    keep_reserve(&disk.0).unwrap();
    let mut n = 0;
    while fs::write(disk.0.join(format!("f{n}")), "").is_ok() {
        n += 1;
    }
    assert!(n < 20, "{n}");
    for _ in 0..3 {
        assert_eq!(disk.promise("c1").unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.reserve(), RESERVED);
        // Room, not only a length.
        assert_eq!(disk.free(), (4 << 20) - RESERVED);
    }
}
