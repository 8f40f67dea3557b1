//! Frames between the CNI plugin and the agent: either side may be an older, newer or hostile one.
#![no_main]

use brindle_cni::proto::{Reply, Request, body_len, decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((head, body)) = data.split_first_chunk()
        && let Ok(len) = body_len(*head)
    {
        assert!(len <= 256 * 1024);
        let _ = decode::<Request>(body.get(..len).unwrap_or(body));
    }
    if let Ok(request) = decode::<Request>(data) {
        let frame = encode(&request).expect("what was read fits");
        decode::<Request>(&frame[4..]).expect("what we write we read");
    }
    if let Ok(reply) = decode::<Reply>(data) {
        let frame = encode(&reply).expect("what was read fits");
        decode::<Reply>(&frame[4..]).expect("what we write we read");
    }
});
