//! The test API server against what a real one answers: bodies, codes and events, over raw HTTP and by the client the
//! agent uses. What is asserted here is Kubernetes' behaviour; a test that fails means the server lies.

mod client;
mod custom;
mod objects;
mod patches;
mod raw;
mod reading;
mod watching;
