//! Any block of path attributes in an UPDATE that announces a prefix. First octet: the session.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((bits, block)) = data.split_first() else { return };
    let cx = brindle_fuzz::session(*bits);
    let Some(attrs) = brindle_fuzz::field(block) else { return };
    let nlri: &[u8] = if cx.add_path[0] { &[0, 0, 0, 1, 16, 10, 1] } else { &[16, 10, 1] };
    // With prefixes to withdraw, and without: the reaction differs (RFC 7606 section 5.2).
    for nlri in [nlri, &[]] {
        if let Some(frame) = brindle_fuzz::frame(2, &[&[0, 0], &attrs, nlri]) {
            brindle_fuzz::check(&frame, &cx);
        }
    }
    // The same bytes as the value of every attribute that has no prefixes in it: never a reset.
    if let Some((code, value)) = block.split_first()
        && let Ok(len) = u8::try_from(value.len())
        && ![14, 15].contains(code)
    {
        let flags = brindle_bgpd_core::wire::attr::row(*code).map_or(0xc0, |r| r.flags);
        let attrs = [&[flags, *code, len][..], value].concat();
        let attrs = brindle_fuzz::field(&attrs).expect("at most 258 octets");
        let frame = brindle_fuzz::frame(2, &[&[0, 0], &attrs, nlri]).expect("a few hundred octets");
        brindle_fuzz::check_kept(&frame, &cx);
    }
});
