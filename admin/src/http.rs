//! Questions of machines about this one: a server for `GET` and `HEAD` of a few paths (metrics, probes), each answered with
//! some text, that knows nothing else of HTTP/1.1 (RFC 9112). One request a connection. What a path answers is its owner's.

use std::{fmt::Display, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Longest head of a request, octets.
const MAX_HEAD: usize = 8 * 1024;
/// Clients at the same time; more wait.
const MAX_CLIENTS: usize = 8;
/// How long a client may take, its answer included.
const PATIENCE: Duration = Duration::from_secs(10);

const OK: &str = "200 OK";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What a path answers.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    status: &'static str,
    content: &'static str,
    body: String,
}

impl Answer {
    /// Text for people and probes: 200, or 503 where things are not as they should be.
    #[must_use]
    pub fn text(well: bool, body: String) -> Self {
        Self { status: if well { OK } else { "503 Service Unavailable" }, content: PLAIN, body }
    }

    /// Metrics in Prometheus' exposition format 0.0.4.
    #[must_use]
    pub fn metrics(body: String) -> Self {
        Self { status: OK, content: "text/plain; version=0.0.4; charset=utf-8", body }
    }
}

/// Binds the port that `flag` names.
///
/// # Errors
/// The system's words, with flag and address.
pub async fn listen(flag: &str, address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| {
        let hint = "choose another port";
        io::Error::new(e.kind(), format!("{flag} {address}: cannot listen: {e}; {hint}"))
    })
}

/// Serves until dropped. `answer` is given a path without its query; `paths` says what there is, for whoever asks for
/// something else.
pub async fn serve<F, W>(listener: TcpListener, paths: impl Display, answer: F)
where
    F: Fn(String) -> W + Clone + Send + 'static,
    W: Future<Output = Option<Answer>> + Send,
{
    let paths: Arc<str> = format!("there is {paths}\n").into();
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (answer, paths) = (answer.clone(), Arc::clone(&paths));
                tokio::spawn(async move {
                    let _slot = slot;
                    match timeout(PATIENCE, client(stream, &paths, answer)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(e)) => tracing::debug!(error = %e, "HTTP client"),
                        Err(_) => tracing::debug!("an HTTP client took too long"),
                    }
                });
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept on the HTTP port; trying again");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client<F, W>(mut stream: TcpStream, paths: &str, answer: F) -> io::Result<()>
where
    F: Fn(String) -> W,
    W: Future<Output = Option<Answer>>,
{
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let refused = |status, body: &str| Answer { status, content: PLAIN, body: body.to_owned() };
    let (answer, with_body) = match request(&head) {
        Some((path, with_body)) => {
            let found = answer(path).await;
            (found.unwrap_or_else(|| refused("404 Not Found", paths)), with_body)
        }
        None => (refused("405 Method Not Allowed", "only GET and HEAD are understood\n"), true),
    };
    let Answer { status, content, body } = answer;
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    if with_body {
        reply += &body;
    }
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
}

/// The path that is asked for, and whether a body is wanted; none: it is no request of ours.
fn request(head: &[u8]) -> Option<(String, bool)> {
    let first = head.split(|b| *b == b'\r').next()?;
    let words: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    let [method @ (b"GET" | b"HEAD"), path, _] = words.as_slice() else { return None };
    let path = path.split(|b| *b == b'?').next()?;
    Some((String::from_utf8_lossy(path).into_owned(), *method == b"GET"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let get = |path: &str, body| Some((path.to_owned(), body));
        assert_eq!(request(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"), get("/livez", true));
        assert_eq!(request(b"HEAD /readyz?verbose HTTP/1.1\r\n\r\n"), get("/readyz", false));
        for other in [&b"POST /livez HTTP/1.1\r\n\r\n"[..], b"GET\r\n\r\n", b"", b"\x16\x03\x01\x00 \xff\r\n"]
        {
            assert_eq!(request(other), None, "{other:?}");
        }
    }

    async fn ask(address: SocketAddr, text: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        said
    }

    #[tokio::test]
    async fn each_path_has_its_answer_and_the_others_are_refused() {
        let listener = listen("--metrics", ([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = listen("--metrics", address).await.unwrap_err().to_string();
        assert!(taken.starts_with(&format!("--metrics {address}: cannot listen: ")), "{taken}");
        tokio::spawn(serve(listener, "/metrics", |path: String| async move {
            match path.as_str() {
                "/metrics" => Some(Answer::metrics("up 1\n".into())),
                "/readyz" => Some(Answer::text(false, "not yet\n".into())),
                _ => None,
            }
        }));
        let said = ask(address, "GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("\r\n\r\nup 1\n"), "{said}");
        let said = ask(address, "HEAD /metrics HTTP/1.1\r\n\r\n").await;
        assert!(said.contains("Content-Length: 5\r\n") && said.ends_with("\r\n\r\n"), "{said}");
        let said = ask(address, "GET /readyz HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 503 ") && said.ends_with("not yet\n"), "{said}");
        let said = ask(address, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 404 ") && said.ends_with("there is /metrics\n"), "{said}");
        assert!(ask(address, "POST / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    }
}
