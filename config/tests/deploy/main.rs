//! What stands under deploy/ against the program: definitions generated from the model, manifests that refer to what
//! exists, overlays and chart rendered. `cargo xtask generate` runs the same tests with `BRINDLE_GENERATE=1`, which
//! writes the generated files; without it a stale one fails, naming that command.

mod crds;
mod support;
