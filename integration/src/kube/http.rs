//! From paths, queries and media types to what they mean.

use std::collections::HashMap;

use hyper::Method;
use serde_json::Value;

use super::{
    rbac::Call,
    selector::Fields,
    status::{Answer, Status},
    write::PatchKind,
};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Path,
    Resource { group: String, version: String, namespace: String, plural: String, name: String, sub: String },
}

/// Percent decoding; what is malformed stays as it is.
fn decoded(text: &str, plus: bool) -> String {
    let b = text.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        match b[i] {
            b'%' => match text.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(h, 16).ok()) {
                Some(c) => {
                    out.push(c);
                    i += 2;
                }
                None => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            c => out.push(c),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn query(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (decoded(k, true), decoded(v, true))
        })
        .collect()
}

pub(crate) fn route(path: &str) -> Route {
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty()).map(|p| decoded(p, false)).collect();
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Route::Path,
    };
    let resource = |namespace: &str, rest: &[&str]| match rest {
        [plural, tail @ ..] if tail.len() <= 2 => Route::Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: namespace.to_owned(),
            plural: (*plural).to_owned(),
            name: tail.first().copied().unwrap_or("").to_owned(),
            sub: tail.get(1).copied().unwrap_or("").to_owned(),
        },
        _ => Route::Path,
    };
    match rest {
        [] => Route::Path,
        ["namespaces", _, "status" | "finalize"] => resource("", rest),
        ["namespaces", ns, rest @ ..] if !rest.is_empty() => resource(ns, rest),
        rest => resource("", rest),
    }
}

/// The call as RBAC sees it.
pub(crate) fn call(method: &Method, route: &Route, path: &str, query: &HashMap<String, String>) -> Call {
    let Route::Resource { group, namespace, plural, name, sub, .. } = route else {
        return Call { verb: method.as_str().to_lowercase(), path: Some(path.to_owned()), ..Call::default() };
    };
    let watch = query.get("watch").is_some_and(|w| matches!(w.as_str(), "1" | "true"));
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET" | "HEAD", false) => "get",
        ("GET" | "HEAD", true) if watch => "watch",
        ("GET" | "HEAD", true) => "list",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", false) => "delete",
        ("DELETE", true) => "deletecollection",
        (other, _) => other,
    };
    // A collection narrowed to one name is asked for by that name.
    let mut name = name.clone();
    if matches!(verb, "list" | "watch" | "deletecollection")
        && let Ok(f) = Fields::parse(query.get("fieldSelector").map_or("", String::as_str))
    {
        name = f.wanted_name().unwrap_or("").to_owned();
    }
    Call {
        verb: verb.to_owned(),
        group: group.clone(),
        resource: if sub.is_empty() { plural.clone() } else { format!("{plural}/{sub}") },
        // The namespace of a Namespace is itself.
        namespace: if group.is_empty() && plural == "namespaces" && !name.is_empty() {
            name.clone()
        } else {
            namespace.clone()
        },
        name,
        path: None,
    }
}

/// Whether only metadata is wanted; 406 when nothing acceptable is.
pub(crate) fn accepted(accept: &str) -> Answer<bool> {
    if accept.is_empty() {
        return Ok(false);
    }
    for media in accept.split(',') {
        let mut parts = media.split(';').map(str::trim);
        let kind = parts.next().unwrap_or("");
        let wanted = parts.find_map(|p| p.strip_prefix("as="));
        match (kind, wanted) {
            ("application/json", Some("PartialObjectMetadata" | "PartialObjectMetadataList")) => {
                return Ok(true);
            }
            ("application/json" | "application/*" | "*/*", None) => return Ok(false),
            _ => {}
        }
    }
    Err(Status::new(
        406,
        "NotAcceptable",
        "only the following media types are accepted: application/json, application/json;stream=watch",
    ))
}

fn media(content: &str) -> &str {
    content.split(';').next().unwrap_or("").trim()
}

/// Whether POST and PUT may have this content.
pub(crate) fn writable(content: &str) -> Answer<()> {
    match media(content) {
        "" | "application/json" | "application/yaml" => Ok(()),
        _ => Err(Status::unsupported_media_type(&["application/json", "application/yaml"])),
    }
}

pub(crate) fn patch_kind(content: &str, custom: bool) -> Answer<PatchKind> {
    match media(content) {
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/strategic-merge-patch+json" if !custom => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        _ if custom => Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ])),
        _ => Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ])),
    }
}

/// A body in JSON or YAML.
pub(crate) fn decode(bytes: &[u8]) -> Answer<Value> {
    if let Ok(v) = serde_json::from_slice(bytes) {
        return Ok(v);
    }
    let text = std::str::from_utf8(bytes).map_err(|e| Status::bad_request(e.to_string()))?;
    if text.trim_start().starts_with(['{', '[']) {
        let e = serde_json::from_slice::<Value>(bytes).err().map(|e| e.to_string()).unwrap_or_default();
        return Err(Status::bad_request(format!("couldn't get version/kind; json parse error: {e}")));
    }
    serde_saphyr::from_str(text)
        .map_err(|e| Status::bad_request(format!("error converting YAML to JSON: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(path: &str) -> [String; 6] {
        match route(path) {
            Route::Resource { group, version, namespace, plural, name, sub } => {
                [group, version, namespace, plural, name, sub]
            }
            Route::Path => Default::default(),
        }
    }

    #[test]
    fn paths_name_resources() {
        assert_eq!(parts("/api/v1/nodes"), ["", "v1", "", "nodes", "", ""]);
        assert_eq!(parts("/api/v1/namespaces/a/pods/b/status"), ["", "v1", "a", "pods", "b", "status"]);
        assert_eq!(parts("/api/v1/namespaces/a"), ["", "v1", "", "namespaces", "a", ""]);
        assert_eq!(parts("/api/v1/namespaces/a/finalize"), ["", "v1", "", "namespaces", "a", "finalize"]);
        assert_eq!(parts("/apis/x.org/v1/ippools/p%2Dq"), ["x.org", "v1", "", "ippools", "p-q", ""]);
        assert_eq!(route("/apis/x.org/v1"), Route::Path);
    }

    #[test]
    fn a_collection_narrowed_to_one_name_is_a_call_for_that_name() {
        let path = "/api/v1/nodes";
        let q = query("fieldSelector=metadata.name%3Dn1&watch=1");
        let c = call(&Method::GET, &route(path), path, &q);
        assert_eq!((c.verb.as_str(), c.name.as_str()), ("watch", "n1"));
    }

    #[test]
    fn media_types() {
        assert!(!accepted("application/json, */*").unwrap());
        assert!(accepted("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1").unwrap());
        assert_eq!(accepted("text/html").unwrap_err().code, 406);
        assert_eq!(patch_kind("application/strategic-merge-patch+json", true).unwrap_err().code, 415);
        assert!(writable("application/json; charset=utf-8").is_ok() && writable("text/plain").is_err());
    }
}
