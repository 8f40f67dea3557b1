//! A byte stream as a peer sends it: cut into frames, each read. First octet: the session.
#![no_main]

use brindle_bgpd_core::wire::next_frame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((bits, mut stream)) = data.split_first() else { return };
    let cx = brindle_fuzz::session(*bits);
    loop {
        match next_frame(stream, cx.max_len()) {
            Ok(None) => break,
            Ok(Some((_, len))) => {
                let (frame, rest) = stream.split_at(len);
                brindle_fuzz::check(frame, &cx);
                stream = rest;
            }
            Err(e) => {
                brindle_fuzz::check_refusal(&e, stream);
                break;
            }
        }
    }
});
