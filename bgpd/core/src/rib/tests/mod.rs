//! Tests of the RIB as a whole.
