//! What stands under deploy/ against the program: definitions generated from the model, manifests that refer to what
//! exists, overlays and chart rendered. `cargo xtask generate` runs the same tests with `BRINDLE_GENERATE=1`, which
//! writes the generated files; without it a stale one fails, naming that command.

#![expect(
    clippy::print_stdout,
    reason = "which files were written and which renderer was used is for the one who runs it"
)]

mod chart;
mod crds;
mod kustomize;
mod manifests;
mod monitoring;
mod reference;
mod support;
mod template;
