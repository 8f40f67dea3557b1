//! docs/reference: a page for each kind, made of the table the definitions are made of.

use brindle_config_core::crd::pages;

use crate::support::{files, generated};

#[test]
fn pages_are_those_of_the_model() {
    let mut expected =
        vec!["docs/reference/brindle-node.md".to_owned(), "docs/reference/brindlectl.md".to_owned()];
    for page in pages() {
        let path = format!("docs/reference/{}", page.file);
        generated(&path, &page.text);
        expected.push(path);
    }
    expected.sort();
    // The two that are no kinds have tests of their own beside the programs.
    let mut there = files("docs/reference", ".md");
    there.extend(expected.iter().filter(|p| p.contains("/brindle")).cloned());
    there.sort();
    there.dedup();
    assert_eq!(there, expected, "a page that no kind stands behind");
}
