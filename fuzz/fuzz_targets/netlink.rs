//! Datagrams of the kernel: any bytes are cut and read without panic, and never into more than there was.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert!(brindle_kernel::netlink::read_any(data) <= data.len());
});
