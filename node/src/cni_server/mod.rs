//! The agent's side of the CNI protocol (`brindle_cni::proto`): a unix socket only root may use, and behind it the
//! [`service`] that gives addresses and records endpoints.

mod service;
mod socket;

pub(crate) use service::{Jitter, Service, now};
pub(crate) use socket::start;
