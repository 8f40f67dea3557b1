//! The etcd store against Debian's etcd: compare-and-swap writes paired with bare transactions over the same protocol in the
//! same run. `bench-etcd`; the server syncs each write to its disk, as one of a cluster does.

#![allow(clippy::print_stdout, reason = "the report is this program's product")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use brindle_config::etcd::{EtcdSettings, EtcdStore};
use brindle_config_core::store::Store;
use brindle_integration::{paired, transcript};
use serde_json::Value;
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

/// The messages of etcd's v3 API, as far as a read and a conditional write need them.
mod pb {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Range {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) key: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Ranged {
        #[prost(message, repeated, tag = "2")]
        pub(crate) kvs: Vec<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct KeyValue {
        #[prost(int64, tag = "3")]
        pub(crate) mod_revision: i64,
        #[prost(bytes = "vec", tag = "5")]
        pub(crate) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Compare {
        /// 2: the modification revision.
        #[prost(int32, tag = "2")]
        pub(crate) target: i32,
        #[prost(bytes = "vec", tag = "3")]
        pub(crate) key: Vec<u8>,
        #[prost(int64, tag = "6")]
        pub(crate) mod_revision: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Operation {
        #[prost(message, optional, tag = "2")]
        pub(crate) put: Option<Put>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Transaction {
        #[prost(message, repeated, tag = "1")]
        pub(crate) compare: Vec<Compare>,
        #[prost(message, repeated, tag = "2")]
        pub(crate) success: Vec<Operation>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Header {
        #[prost(int64, tag = "3")]
        pub(crate) revision: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Done {
        #[prost(message, optional, tag = "1")]
        pub(crate) header: Option<Header>,
        #[prost(bool, tag = "2")]
        pub(crate) succeeded: bool,
    }
}

const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let dir = std::env::temp_dir().join(format!("bench-etcd-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let (url, server) = transcript::etcd(&dir, None);
    runtime.block_on(measure(url.trim_start_matches("etcd:")));
    drop(server);
    let _ = std::fs::remove_dir_all(&dir);
}

async fn measure(url: &str) {
    let settings = EtcdSettings::parse(url, |_| None).unwrap_or_else(|e| panic!("{e}"));
    let store = EtcdStore::new(settings);
    let end = Instant::now() + LIMIT;
    while let Err(e) = store.list(&[]).await {
        assert!(Instant::now() < end, "etcd does not answer: {e}");
    }
    let endpoint = Channel::from_shared(url.to_owned()).expect("it is a URL").tcp_nodelay(true);
    let channel = endpoint.connect().await.unwrap_or_else(|e| panic!("{url}: {e}"));
    paired::compare(Arc::new(store), |writer| write(channel.clone(), writer)).await;
}

/// One call of the bare client.
async fn call<Q, A>(channel: &Channel, path: &'static str, message: Q) -> A
where
    Q: prost::Message + 'static,
    A: prost::Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap_or_else(|e| panic!("{path}: {e}"));
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc.unary(Request::new(message), PathAndQuery::from_static(path), codec).await;
    answer.unwrap_or_else(|s| panic!("{path}: {s}")).into_inner()
}

async fn write(channel: Channel, writer: usize) {
    let name = paired::name(writer);
    let key = format!("/calico/resources/v3/projectcalico.org/globalnetworksets/{name}").into_bytes();
    let found: pb::Ranged = call(&channel, "/etcdserverpb.KV/Range", pb::Range { key: key.clone() }).await;
    let found = found.kvs.into_iter().next().unwrap_or_else(|| panic!("{name} is not where Calico has it"));
    let mut object: Value = serde_json::from_slice(&found.value).expect("a resource is JSON");
    let mut at = found.mod_revision;
    for n in 0..paired::WRITES {
        object["spec"] = paired::value(writer, n)["spec"].take();
        let put = pb::Put { key: key.clone(), value: object.to_string().into_bytes() };
        let ask = pb::Transaction {
            compare: vec![pb::Compare { target: 2, key: key.clone(), mod_revision: at }],
            success: vec![pb::Operation { put: Some(put) }],
        };
        let done: pb::Done = call(&channel, "/etcdserverpb.KV/Txn", ask).await;
        assert!(done.succeeded, "{name}: nobody else writes it");
        at = done.header.map_or(0, |h| h.revision);
    }
}
