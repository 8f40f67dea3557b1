//! Giving memory back: what a program needed to start, and what its allocator keeps without using it.
#![expect(unsafe_code, reason = "madvise, mallopt and malloc_trim have no safe form")]

use std::{fs, io, time::Duration};

/// Lets the allocator of glibc make no more than this many arenas; without it there are up to eight per processor, each
/// with its own free memory. For the beginning of a program. Elsewhere than with glibc it does nothing.
pub fn limit_arenas(arenas: u8) {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and changes a setting of the allocator under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, libc::c_int::from(arenas));
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// The processor time this process has used since its start, all threads together; zero where the kernel does not tell.
#[must_use]
pub fn processor_time() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}

/// Gives free memory of the allocator back to the kernel, and what [`let_program_go`] does. Gives the octets of the
/// mappings let go.
///
/// # Errors
/// /proc is not there or does not read.
pub fn give_back() -> io::Result<usize> {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes a number and locks what it touches.
    unsafe {
        libc::malloc_trim(0);
    }
    let_program_go()
}

/// Lets pages of the program's file go that were only needed at its start: the ones in use come back from the page cache by
/// themselves, sixteen with each that is missed. Gives the octets of the mappings let go.
///
/// # Errors
/// /proc is not there or does not read.
pub fn let_program_go() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/smaps")?;
    let mut octets = 0;
    for (start, len) in clean_text(&maps) {
        // SAFETY: the mapping is private, of a file, and no page of it differs from the file (Anonymous: 0 kB), so that
        // whatever is dropped reads the same from the file again. It may not be written, and nobody here makes text or
        // constants writable.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_DONTNEED) };
        if done == 0 {
            octets += len;
        }
    }
    Ok(octets)
}

/// Start and length of the mappings of files that may not be written, and were not: program text and constants. Tables
/// the loader filled in before it took the right to write away have anonymous pages.
fn clean_text(smaps: &str) -> Vec<(usize, usize)> {
    let mut out = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = header(line) {
            candidate = range;
        } else if let Some(rest) = line.strip_prefix("Anonymous:")
            && rest.split_ascii_whitespace().next() == Some("0")
        {
            out.extend(candidate.take());
        }
    }
    out
}

/// The first line of a mapping: `Some(None)` for one that is left alone.
fn header(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let parse = |hex| usize::from_str_radix(hex, 16).ok();
    let (start, end) = (parse(start)?, parse(end)?);
    let rights = words.next()?;
    let file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    let ours = (rights == "r-xp" || rights == "r--p") && file;
    Some(end.checked_sub(start).filter(|_| ours).map(|len| (start, len)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_text_and_constants_that_were_never_written_are_let_go() {
        let smaps = "\
55d0a0000000-55d0a0400000 r--p 00000000 fe:00 12 /usr/bin/x\nRss: 4 kB\nAnonymous:             0 kB\n\
55d0a0400000-55d0a1000000 r-xp 00400000 fe:00 12 /usr/bin/x\nRss: 4 kB\nAnonymous:             0 kB\n\
55d0a1000000-55d0a1100000 r--p 01000000 fe:00 12 /usr/bin/x\nAnonymous:          1024 kB\n\
7f0000000000-7f0000100000 r-xp 00000000 fe:00 13 /usr/lib/libc.so.6\nAnonymous:          4 kB\n\
7ffc00000000-7ffc00001000 r-xp 00000000 00:00 0 [vdso]\nAnonymous:             0 kB\n";
        assert_eq!(clean_text(smaps), [(0x55d0_a000_0000, 0x40_0000), (0x55d0_a040_0000, 0xc0_0000)]);
        assert_eq!(clean_text("nonsense\nAnonymous: 0 kB\n"), []);
    }

    #[test]
    fn the_program_goes_on_without_the_pages_it_gave_back() {
        limit_arenas(2);
        assert!(give_back().unwrap() > 0);
        // Its text comes back as it is called.
        let before = processor_time();
        let words: Vec<String> = (0..1000).map(|n| format!("{n}")).collect();
        assert_eq!(words.join("").len(), 2890);
        assert!(give_back().unwrap() > 0);
        assert!(processor_time() > before);
    }
}
