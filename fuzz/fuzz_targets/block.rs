//! IPAM blocks as JSON from a store others write to: read or refused; what is given out was free and is given once.
#![no_main]

use brindle_config_core::ipam::IpamBlockSpec;
use brindle_ipam::{Owner, block::Block, net::Reservations};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(spec) = serde_json::from_slice::<IpamBlockSpec>(data) else { return };
    let Ok(mut block) = Block::from_spec(spec) else { return };
    let before: Vec<_> = block.allocations().map(|a| a.ip).collect();
    let free = block.free_count(&Reservations::default());
    let got = block.auto_assign(3, &Owner::default(), &Reservations::default());
    assert_eq!(got.len(), free.min(3));
    for (i, ip) in got.iter().enumerate() {
        assert!(block.cidr().contains(ip) && !before.contains(ip) && !got[..i].contains(ip));
    }
    let written = serde_json::to_vec(&block.to_write()).expect("a block is JSON");
    let spec = serde_json::from_slice(&written).expect("what we write we read");
    let again = Block::from_spec(spec).expect("what we write is sound");
    assert_eq!(again.allocations().count(), before.len() + got.len());
});
