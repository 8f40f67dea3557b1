//! Any prefixes in the four fields that hold some, among sound attributes. First octet: the session, second: field.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [bits, place, prefixes @ ..] = data else { return };
    let cx = brindle_fuzz::session(*bits);
    let path: &[u8] = if cx.four_octet_as {
        &[0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe9]
    } else {
        &[0x40, 2, 4, 2, 1, 0xfd, 0xe9]
    };
    let sound = [&[0x40, 1, 1, 0][..], path, &[0x40, 3, 4, 10, 0, 0, 1]].concat();
    let mp = |head: &[u8], code: u8| {
        let value = brindle_fuzz::field(&[head, prefixes].concat())?;
        Some([&[0x90, code][..], &value, &sound].concat())
    };
    let mut reach = vec![0, 2, 1, 16, 0x20, 1];
    reach.extend_from_slice(&[0; 15]);
    let (withdrawn, attrs, nlri): (&[u8], _, &[u8]) = match place % 4 {
        0 => (prefixes, sound, &[]),
        1 => (&[], sound, prefixes),
        2 => match mp(&reach, 14) {
            Some(attrs) => (&[], attrs, &[]),
            None => return,
        },
        _ => match mp(&[0, 2, 1], 15) {
            Some(attrs) => (&[], attrs, &[]),
            None => return,
        },
    };
    let (Some(withdrawn), Some(attrs)) = (brindle_fuzz::field(withdrawn), brindle_fuzz::field(&attrs)) else {
        return;
    };
    if let Some(frame) = brindle_fuzz::frame(2, &[&withdrawn, &attrs, nlri]) {
        brindle_fuzz::check(&frame, &cx);
    }
});
