//! Best paths on their way out of the speaker task: one pending change per prefix, so that a slow consumer costs
//! memory by the size of the table and not by its history.

use std::{collections::HashMap, net::IpAddr};

use brindle_bgpd_core::speaker::FibChange;
use ipnet::IpNet;
use tokio::sync::mpsc;

use crate::handle::{FibBatch, FibStream};

/// Pending changes and the channel to the consumer.
#[derive(Debug)]
pub(crate) struct FibQueue {
    /// `None`: nobody listens.
    batches: Option<mpsc::Sender<FibBatch>>,
    pending: FibBatch,
    place: HashMap<IpNet, usize>,
}

impl FibQueue {
    pub(crate) fn new() -> (Self, FibStream) {
        let (tx, rx) = mpsc::channel(1);
        let queue = Self { batches: Some(tx), pending: FibBatch::default(), place: HashMap::new() };
        (queue, FibStream { batches: rx })
    }

    /// Whether somebody wants to know.
    pub(crate) fn is_heard(&self) -> bool {
        self.batches.as_ref().is_some_and(|tx| !tx.is_closed())
    }

    pub(crate) fn change(&mut self, change: FibChange) {
        if self.batches.is_none() {
            return;
        }
        match self.place.get(&change.prefix).and_then(|i| self.pending.changes.get_mut(*i)) {
            Some(pending) => *pending = change,
            None => {
                self.place.insert(change.prefix, self.pending.changes.len());
                self.pending.changes.push(change);
            }
        }
    }

    pub(crate) fn locate(&mut self, next_hop: IpAddr) {
        if self.batches.is_some() {
            self.pending.locate.push(next_hop);
        }
    }

    pub(crate) fn in_sync(&mut self) {
        self.pending.in_sync = true;
    }

    /// Everything said so far is void.
    pub(crate) fn reset(&mut self) {
        self.place.clear();
        self.pending = FibBatch { reset: true, ..FibBatch::default() };
    }

    pub(crate) fn has_work(&self) -> bool {
        self.batches.is_some() && self.pending != FibBatch::default()
    }

    /// Hands over what is pending as soon as the consumer has taken the batch before. Cancel safe. Returns at once if
    /// nobody listens any more, and queues nothing from then on.
    pub(crate) async fn hand_over(&mut self) {
        let Some(tx) = &self.batches else { return };
        if let Ok(permit) = tx.reserve().await {
            self.place.clear();
            permit.send(std::mem::take(&mut self.pending));
            return;
        }
        self.batches = None;
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(prefix: &str, via: &[&str]) -> FibChange {
        FibChange {
            prefix: prefix.parse().unwrap(),
            next_hops: via.iter().map(|v| v.parse().unwrap()).collect(),
            from: None,
        }
    }

    #[tokio::test]
    async fn changes_of_one_prefix_coalesce_while_the_consumer_is_busy() {
        let (mut queue, mut stream) = FibQueue::new();
        assert!(!queue.has_work());
        queue.change(change("10.0.0.0/24", &["192.0.2.1"]));
        queue.hand_over().await;
        queue.change(change("10.0.1.0/24", &["192.0.2.1"]));
        queue.change(change("10.0.2.0/24", &["192.0.2.1"]));
        queue.change(change("10.0.1.0/24", &[]));
        queue.in_sync();
        assert_eq!(stream.next().await.unwrap().changes.len(), 1);
        queue.hand_over().await;
        let batch = stream.next().await.unwrap();
        assert_eq!(batch.changes, [change("10.0.1.0/24", &[]), change("10.0.2.0/24", &["192.0.2.1"])]);
        assert!(batch.in_sync && !batch.reset && !queue.has_work());
    }

    #[tokio::test]
    async fn without_a_consumer_nothing_is_kept() {
        let (mut queue, stream) = FibQueue::new();
        drop(stream);
        queue.change(change("10.0.0.0/24", &["192.0.2.1"]));
        queue.hand_over().await;
        queue.change(change("10.0.1.0/24", &["192.0.2.1"]));
        assert!(!queue.has_work());
    }
}
