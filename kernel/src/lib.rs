//! Placeholder, see ARCHITECTURE.md.
pub mod tcp;
