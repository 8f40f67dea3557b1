//! Mechanism only: netlink, sysctl, socket options, namespaces, child processes. No policy: nothing here knows what a
//! pod, a pool or a peer is.
//!
//! The only package that may hold `unsafe` (file by file, with a reason). Everything blocks; callers that live on an
//! async runtime give it a thread of its own. Every receive has a deadline and no answer of the kernel, however short
//! or odd, can make it panic. See docs/design/kernel.md.

pub mod api;
pub mod daemon;
pub mod disk;
pub mod exec;
#[cfg(feature = "fake")]
pub mod fake;
pub mod files;
pub mod icmp;
pub mod memory;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod process;
pub mod rawip;
pub mod sysctl;
pub mod tcp;
pub mod tun;
