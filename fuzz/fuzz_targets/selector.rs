//! Label selectors: any text is an expression or an error; its canonical text is a fixed point and means the same.
#![no_main]

use std::collections::BTreeMap;

use brindle_config_core::selector::Selector;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(selector) = Selector::parse(text) else { return };
    let canonical = selector.to_string();
    let again = Selector::parse(&canonical).unwrap_or_else(|e| panic!("{text:?} -> {canonical:?}: {e}"));
    assert_eq!(again.to_string(), canonical, "{text:?}");
    assert_eq!(again.unique_id(), selector.unique_id());
    // Labels made of words of the text are the ones that can match.
    let words: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let labels: BTreeMap<String, String> =
        words.windows(2).map(|w| (w[0].to_owned(), w[1].to_owned())).collect();
    for labels in [labels, BTreeMap::new()] {
        assert_eq!(again.matches(&labels), selector.matches(&labels), "{text:?}");
    }
});
