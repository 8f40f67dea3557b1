//! The server by the client library the agent uses: over TLS, with a kubeconfig, objects and watches.

use std::time::Duration;

use brindle_integration::kube::{ApiServer, Options};
use futures::{StreamExt, TryStreamExt};
use kube::{
    Client, Config,
    api::{
        Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde_json::json;

use super::{custom, raw::block};

async fn client(server: &ApiServer) -> Client {
    let file = Kubeconfig::from_yaml(&server.kubeconfig(server.admin_token())).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn resource(group: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
}

#[test]
fn objects_and_failures_through_the_client() {
    let s = ApiServer::with_tls();
    s.create(custom::definition()).unwrap();
    block(async {
        let c = client(&s).await;
        assert_eq!(c.apiserver_version().await.unwrap().minor, "36");
        let pools: Api<DynamicObject> =
            Api::all_with(c.clone(), &resource("test.example.org", "Pool", "pools"));
        let made = pools
            .create(&PostParams::default(), &serde_json::from_value(custom::pool("a")).unwrap())
            .await
            .unwrap();
        assert_eq!(made.data["spec"]["mode"], "Never");
        let stale = made.clone();
        let patch = Patch::Merge(json!({"spec": {"mode": "Always"}}));
        pools.patch("a", &PatchParams::default(), &patch).await.unwrap();
        let e = pools.replace("a", &PostParams::default(), &stale).await.unwrap_err();
        let kube::Error::Api(e) = e else { panic!("{e}") };
        assert_eq!((e.code, e.reason.as_str()), (409, "Conflict"));
        assert!(pools.get_opt("none").await.unwrap().is_none());
        let applied = Patch::Apply(
            json!({"apiVersion": "test.example.org/v1", "kind": "Pool", "metadata": {"name": "b"}, "spec": {"cidr": "::/0"}}),
        );
        pools.patch("b", &PatchParams::apply("me"), &applied).await.unwrap();
        let list = pools.list(&ListParams::default().limit(1)).await.unwrap();
        assert_eq!((list.items.len(), list.metadata.continue_.is_some()), (1, true));
        let groups = c.list_api_groups().await.unwrap();
        assert!(groups.groups.iter().any(|g| g.name == "test.example.org"));
    });
}

#[test]
fn a_watch_through_the_client_ends_when_dropped_and_resumes() {
    let s = ApiServer::start(Options {
        tls: true,
        bookmark_every: Duration::from_millis(100),
        ..Options::default()
    });
    block(async {
        let c = client(&s).await;
        let maps: Api<DynamicObject> =
            Api::namespaced_with(c, "default", &resource("", "ConfigMap", "configmaps"));
        let rv = s.resource_version().to_string();
        let mut events = maps.watch(&WatchParams::default(), &rv).await.unwrap().boxed();
        s.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}})).unwrap();
        let first =
            tokio::time::timeout(Duration::from_secs(20), events.try_next()).await.unwrap().unwrap().unwrap();
        let WatchEvent::Added(o) = first else { panic!("{first:?}") };
        assert_eq!(o.metadata.name.as_deref(), Some("a"));
        let mark =
            tokio::time::timeout(Duration::from_secs(20), events.try_next()).await.unwrap().unwrap().unwrap();
        let WatchEvent::Bookmark(mark) = mark else { panic!("{mark:?}") };
        assert_eq!(mark.metadata.resource_version, s.resource_version().to_string());
        s.drop_watches();
        // The stream ends, with an error or without, and never with an event.
        loop {
            match tokio::time::timeout(Duration::from_secs(20), events.try_next()).await.unwrap() {
                Ok(Some(WatchEvent::Bookmark(_))) => {}
                Ok(Some(e)) => panic!("{e:?}"),
                Ok(None) | Err(_) => break,
            }
        }
        s.create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b", "namespace": "default"}})).unwrap();
        let mut events =
            maps.watch(&WatchParams::default(), &mark.metadata.resource_version).await.unwrap().boxed();
        let next =
            tokio::time::timeout(Duration::from_secs(20), events.try_next()).await.unwrap().unwrap().unwrap();
        let WatchEvent::Added(o) = next else { panic!("{next:?}") };
        assert_eq!(o.metadata.name.as_deref(), Some("b"));
    });
}
