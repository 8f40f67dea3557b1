//! The speaker alone.
