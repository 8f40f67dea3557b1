//! The contract on SQLite.

use std::sync::Arc;

use super::*;
use crate::{
    contract::{self, Subject},
    testing::TempDir,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_the_contract() {
    contract::run(|| {
        let dir = Arc::new(TempDir::new());
        let path = dir.path("store.db");
        let compactor = path.clone();
        Subject {
            handle: Box::new(move || {
                let _keep = &dir;
                Arc::new(SqliteStore::open(&path).expect("opens"))
            }),
            compact: Box::new(move || {
                let store = SqliteStore::open(&compactor).expect("opens");
                Box::pin(async move { store.compact().await.expect("compacts") })
            }),
        }
    })
    .await;
}
