//! Any OPEN body, and any optional parameters after a sound fixed part in the short and the long form.
#![no_main]

use libfuzzer_sys::fuzz_target;

const FIXED: [u8; 9] = [4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1];

fuzz_target!(|data: &[u8]| {
    let cx = brindle_fuzz::session(0);
    let mut frames = vec![brindle_fuzz::frame(1, &[data])];
    if let Ok(len) = u8::try_from(data.len()) {
        frames.push(brindle_fuzz::frame(1, &[&FIXED, &[len], data]));
    }
    if let Some(params) = brindle_fuzz::field(data) {
        frames.push(brindle_fuzz::frame(1, &[&FIXED, &[255, 255], &params]));
    }
    for frame in frames.into_iter().flatten() {
        brindle_fuzz::check(&frame, &cx);
    }
});
