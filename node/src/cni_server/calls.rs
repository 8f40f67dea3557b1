//! How many calls there were, by command and result.

use std::sync::atomic::{AtomicU64, Ordering};

use brindle_cni::proto::{Call, Reply};

/// As the protocol calls them.
const COMMANDS: [&str; 12] = [
    "ping",
    "pod-cidrs",
    "status",
    "add",
    "register",
    "del",
    "check",
    "ipam-add",
    "ipam-del",
    "ipam-check",
    "gc",
    "families",
];
const RESULTS: [&str; 2] = ["ok", "error"];

/// Counts calls.
#[derive(Debug, Default)]
pub(crate) struct Calls([[AtomicU64; 2]; COMMANDS.len()]);

impl Calls {
    /// A call was answered. `command`: its [`command`].
    pub(super) fn count(&self, command: usize, reply: &Reply) {
        let result = usize::from(matches!(reply, Reply::Error { .. }));
        if let Some(count) = self.0.get(command).and_then(|c| c.get(result)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Command, result, count.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        COMMANDS.into_iter().zip(&self.0).flat_map(|(command, counts)| {
            RESULTS
                .into_iter()
                .zip(counts)
                .map(move |(result, n)| (command, result, n.load(Ordering::Relaxed)))
        })
    }
}

/// The place of a call's command.
pub(super) const fn command(call: &Call) -> usize {
    match call {
        Call::Ping => 0,
        Call::PodCidrs => 1,
        Call::Status { .. } => 2,
        Call::Add { .. } => 3,
        Call::Register { .. } => 4,
        Call::Del { .. } => 5,
        Call::Check { .. } => 6,
        Call::IpamAdd { .. } => 7,
        Call::IpamDel { .. } => 8,
        Call::IpamCheck { .. } => 9,
        Call::Gc { .. } => 10,
        Call::Families => 11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_under_their_own_name() {
        let calls = Calls::default();
        let gc = Call::Gc { network: "n".into(), valid: Vec::new(), dry_run: false };
        calls.count(command(&gc), &Reply::Deleted);
        calls.count(
            command(&Call::status()),
            &Reply::Error { code: 50, msg: String::new(), details: String::new() },
        );
        let counted: Vec<_> = calls.all().filter(|(.., n)| *n > 0).collect();
        assert_eq!(counted, [("status", "error", 1), ("gc", "ok", 1)]);
    }
}
