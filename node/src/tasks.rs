//! The agent's tasks, by the names of their parts. One that ends, by a defect or because what it lives on is gone, ends the
//! agent: alone it would leave one that says it is ready, and of which a part stands still. The next agent adopts everything.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};

/// Tasks that end with it.
#[derive(Default)]
pub(crate) struct Tasks {
    running: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task that is to run as long as the agent.
    pub(crate) fn spawn(&mut self, part: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.insert(self.running.spawn(task).id(), part);
    }

    /// Starts a task that returns when a part it serves has ended, which is told of that part, or when it has nothing to do
    /// any more: of its own, only a defect is told.
    pub(crate) fn spawn_beside(
        &mut self,
        part: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(part, async {
            task.await;
            std::future::pending().await
        });
    }

    /// Completes with the name of a part that ended; never where there is none. Cancel safe.
    pub(crate) async fn ended(&mut self) -> &'static str {
        match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => self.name(id),
            Some(Err(e)) => self.name(e.id()),
            None => std::future::pending().await,
        }
    }

    fn name(&self, id: Id) -> &'static str {
        self.names.get(&id).copied().unwrap_or("a task")
    }

    /// Ends them all, and waits until they have: what they held is free.
    pub(crate) async fn stop(mut self) {
        self.running.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn others() -> Tasks {
        let mut tasks = Tasks::default();
        tasks.spawn("one", pending());
        tasks.spawn_beside("what has nothing to do", async {});
        tasks
    }

    #[tokio::test]
    async fn a_part_that_returns_or_panics_is_named() {
        let mut tasks = others();
        tasks.spawn("two", async {});
        assert_eq!(tasks.ended().await, "two");
        tasks.spawn("three", async { panic!("as a defect would") });
        assert_eq!(tasks.ended().await, "three");
        tasks.spawn_beside("four", async { panic!("as a defect would") });
        assert_eq!(tasks.ended().await, "four");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_may_return_ends_nothing() {
        let mut tasks = others();
        let day = std::time::Duration::from_secs(86_400);
        assert!(tokio::time::timeout(day, tasks.ended()).await.is_err());
    }

    #[tokio::test]
    async fn what_stopped_tasks_held_is_free() {
        let held = std::sync::Arc::new(());
        let theirs = held.clone();
        let mut tasks = Tasks::default();
        tasks.spawn("one", async move {
            let _theirs = theirs;
            pending().await
        });
        tasks.stop().await;
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
