//! A bare HTTP client: one connection for each call, bodies as JSON.

use brindle_integration::kube::ApiServer;
use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

pub(crate) struct Raw<'a> {
    pub server: &'a ApiServer,
    pub token: Option<String>,
}

pub(crate) struct Answer {
    pub code: u16,
    pub body: Value,
    pub headers: hyper::HeaderMap,
}

pub(crate) fn block<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
}

impl<'a> Raw<'a> {
    pub(crate) fn admin(server: &'a ApiServer) -> Self {
        Self { server, token: Some(server.admin_token().to_owned()) }
    }

    pub(crate) fn with(server: &'a ApiServer, token: &str) -> Self {
        Self { server, token: Some(token.to_owned()) }
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> hyper::Response<hyper::body::Incoming> {
        let stream = TcpStream::connect(self.server.address()).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "test");
        if let Some(t) = &self.token {
            request = request.header("authorization", format!("Bearer {t}"));
        }
        for (k, v) in headers {
            request = request.header(*k, *v);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        sender.send_request(request).await.unwrap()
    }

    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        block(async {
            let response = self.send(method, path, headers, body).await;
            let (head, body) = response.into_parts();
            let bytes = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
            Answer { code: head.status.as_u16(), body, headers: head.headers }
        })
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], Vec::new())
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &[("content-type", "application/json")], body.to_string().into_bytes())
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        self.call("PUT", path, &[("content-type", "application/json")], body.to_string().into_bytes())
    }

    pub(crate) fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        self.call("PATCH", path, &[("content-type", kind)], body.to_string().into_bytes())
    }

    pub(crate) fn delete(&self, path: &str, options: &Value) -> Answer {
        let body = if options.is_null() { Vec::new() } else { options.to_string().into_bytes() };
        self.call("DELETE", path, &[("content-type", "application/json")], body)
    }

    /// The events of a watch until the server ends it (give it a timeout).
    pub(crate) fn events(&self, path: &str) -> Vec<Value> {
        let a = self.call("GET", path, &[], Vec::new());
        assert_eq!(a.code, 200, "{}", a.body);
        match a.body {
            Value::String(lines) => lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect(),
            Value::Null => Vec::new(),
            one => vec![one],
        }
    }
}

impl Answer {
    /// The failure, as code, reason and message.
    pub(crate) fn failure(&self) -> (u16, &str, &str) {
        assert_eq!(self.body["kind"], "Status", "{}", self.body);
        assert_eq!(self.body["apiVersion"], "v1");
        assert_eq!(self.body["status"], "Failure");
        assert_eq!(self.body["code"], self.code);
        let text = |f: &str| self.body[f].as_str().unwrap_or("");
        (self.code, text("reason"), text("message"))
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.code), "{}: {}", self.code, self.body);
        self.body
    }
}

pub(crate) fn pod(name: &str, node: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i:1"}]}})
}

pub(crate) fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": value}})
}
