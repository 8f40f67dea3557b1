//! The vocabulary of the system: resources with Calico's exact fields and defaults, keys, selectors, and the
//! [`store::Store`] trait every datastore implements.
//!
//! Pure: no I/O, no clock, no randomness, no threads. What reads files or opens databases is in `config`.

pub mod any;
pub mod bgp;
pub mod bgp_values;
pub mod controllers;
pub mod convert;
pub mod crd;
pub mod duration;
pub mod felix;
pub mod fields;
pub mod ipam;
pub mod key;
pub mod kube;
pub mod lease;
pub mod meta;
pub mod names;
pub mod node;
pub mod node_status;
pub mod policy;
pub mod policy_defaults;
pub mod policy_names;
pub mod pool;
pub mod selector;
pub mod service;
pub mod status;
pub mod store;
pub mod suggest;
pub mod time;
pub mod unserved;
pub mod validate;
pub mod workload;
pub mod workload_view;

pub use any::AnyResource;
pub use key::{Key, Kind};
pub use meta::{ObjectMeta, Resource, Spec};
pub use selector::Selector;
