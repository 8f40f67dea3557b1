//! YAML and JSON files with resources: any bytes give resources, warnings and errors, each with its place; sound
//! resources survive being written and read again.
#![no_main]

use brindle_config::yaml::{parse_bytes, parse_str, to_yaml_documents};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let loading = parse_bytes("input", data);
    for problem in loading.errors.iter().chain(&loading.warnings) {
        assert!(!problem.message.is_empty() && !problem.to_string().contains('\n'), "{problem:?}");
    }
    if !loading.errors.is_empty() || loading.resources.is_empty() {
        return;
    }
    let text = to_yaml_documents(loading.resources.iter().map(|l| &l.resource));
    let again = parse_str("written", &text);
    assert!(again.errors.is_empty(), "{:?}\n{text}", again.errors);
    let before: Vec<_> = loading.resources.iter().map(|l| &l.resource).collect();
    let after: Vec<_> = again.resources.iter().map(|l| &l.resource).collect();
    assert_eq!(before, after, "{text}");
});
