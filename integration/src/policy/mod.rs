//! Network policy under real packets: a node with pods of three namespaces and hosts outside it ([`lab`]), all of which
//! try to reach each other in one go ([`probe`]), and the cases whose outcome an oracle foretells ([`suite`]).
//!
//! The oracle is the one of felix-core's tests: it reads the API documents literally, from JSON, and shares no code with
//! what it judges.

pub mod cases;
pub mod lab;
mod packet;
pub mod probe;
pub mod sample;
pub mod suite;
pub mod table;
pub mod world;

#[allow(dead_code, unreachable_pub, reason = "shared with the tests of felix-core, which use all of it")]
#[path = "../../../felix/core/tests/policy/oracle/mod.rs"]
pub(crate) mod oracle;
