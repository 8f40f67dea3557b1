//! deploy/crds: one file for each definition, and a kustomization that lists them.

use std::fmt::Write as _;

use brindle_config::yaml::to_yaml;
use brindle_config_core::crd;

use crate::support::{documents, files, generated, read};

const HEAD: &str = "# Generated from config/core/src/crd/table.txt by `cargo xtask generate`.\n";

#[test]
fn definitions_are_those_of_the_model() {
    let mut names = String::new();
    let mut expected = Vec::new();
    let definitions = crd::definitions();
    for d in &definitions {
        let path = format!("deploy/crds/{}_{}.yaml", crd::GROUP, d.plural);
        generated(&path, &format!("{HEAD}{}", to_yaml(&d.value)));
        expected.push(path);
    }
    expected.sort();
    for path in &expected {
        writeln!(names, "  - {}", path.trim_start_matches("deploy/crds/")).expect("a string takes it");
    }
    let list = format!(
        "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{names}"
    );
    generated("deploy/crds/kustomization.yaml", &list);
    expected.push("deploy/crds/kustomization.yaml".into());
    expected.sort();
    assert_eq!(files("deploy/crds", ".yaml"), expected, "a file that no definition stands behind");
    // What was written reads back as what was meant.
    for (d, path) in definitions.iter().map(|d| (d, format!("deploy/crds/{}_{}.yaml", crd::GROUP, d.plural)))
    {
        assert_eq!(documents(&path, &read(&path)), std::slice::from_ref(&d.value), "{path}");
    }
}
