//! Questions of machines about this one: a server for `GET` and `HEAD` of a few paths (metrics, probes), each answered with
//! some text, that knows nothing else of HTTP/1.1 (RFC 9112). One request a connection. What a path answers is its owner's.
//!
//! Nobody can hold up a probe: who connects has [`Limits::head`] to say what he wants, and of many who say nothing the
//! one that has been there longest goes when another comes; probes and other questions have room of their own, and who
//! finds no room even to wait is told so at once.

use std::{
    collections::VecDeque,
    fmt::Display,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::AbortHandle,
    time::{sleep, timeout},
};

use crate::defect::{outlived, words};

/// Longest head of a request, octets.
const MAX_HEAD: usize = 8 * 1024;
/// Paths by which others decide whether this process lives.
const PROBES: [&str; 4] = ["/livez", "/readyz", "/liveness", "/readiness"];

const OK: &str = "200 OK";
const BUSY: &str = "503 Service Unavailable";
const PLAIN: &str = "text/plain; charset=utf-8";

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Time to say what is wanted.
    head: Duration,
    /// Time from then on, the answer included.
    answer: Duration,
    /// Connections that have not said anything yet.
    silent: usize,
    /// Questions of one sort answered at the same time; more wait.
    at_once: usize,
    /// Those that wait, and those that are answered.
    admitted: usize,
}

const LIMITS: Limits = Limits {
    head: Duration::from_secs(2),
    answer: Duration::from_secs(10),
    silent: 64,
    at_once: 8,
    admitted: 64,
};

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
        Self { status: if well { OK } else { BUSY }, content: PLAIN, body }
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
    within(LIMITS, listener, paths, answer).await;
}

async fn within<F, W>(limits: Limits, listener: TcpListener, paths: impl Display, answer: F)
where
    F: Fn(String) -> W + Clone + Send + 'static,
    W: Future<Output = Option<Answer>> + Send,
{
    let paths: Arc<str> = format!("there is {paths}\n").into();
    let (probes, others) = (Room::new(&limits), Room::new(&limits));
    let mut silent: VecDeque<Silent> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                silent.retain(Silent::is_waited_for);
                if silent.len() >= limits.silent
                    && let Some(oldest) = silent.pop_front()
                {
                    oldest.task.abort();
                    tracing::debug!("many HTTP clients say nothing; the one that was there longest is left");
                }
                let heard = Arc::new(AtomicBool::new(false));
                let client = Client {
                    stream,
                    heard: Arc::clone(&heard),
                    limits,
                    paths: Arc::clone(&paths),
                    probes: probes.clone(),
                    others: others.clone(),
                };
                let answer = answer.clone();
                let task = tokio::spawn(async move {
                    if let Err(e) = client.serve(answer).await {
                        tracing::debug!(error = %e, "HTTP client");
                    }
                });
                silent.push_back(Silent { heard, task: task.abort_handle() });
            }
            Err(e) => {
                tracing::warn!(error = %e, "cannot accept on the HTTP port; trying again");
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// A connection that has not said yet what it wants.
struct Silent {
    heard: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Silent {
    fn is_waited_for(&self) -> bool {
        !self.heard.load(Ordering::Relaxed) && !self.task.is_finished()
    }
}

/// Room for questions of one sort.
#[derive(Clone)]
struct Room {
    admitted: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
}

impl Room {
    fn new(limits: &Limits) -> Self {
        Self {
            admitted: Arc::new(Semaphore::new(limits.admitted)),
            at_once: Arc::new(Semaphore::new(limits.at_once)),
        }
    }
}

struct Client {
    stream: TcpStream,
    heard: Arc<AtomicBool>,
    limits: Limits,
    paths: Arc<str>,
    probes: Room,
    others: Room,
}

fn refused(status: &'static str, body: &str) -> Answer {
    Answer { status, content: PLAIN, body: body.to_owned() }
}

fn late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what.to_owned())
}

impl Client {
    async fn serve<F, W>(mut self, answer: F) -> io::Result<()>
    where
        F: Fn(String) -> W,
        W: Future<Output = Option<Answer>>,
    {
        let head = timeout(self.limits.head, head(&mut self.stream)).await;
        let head = head.map_err(|_| late("it did not say what it wants"))??;
        self.heard.store(true, Ordering::Relaxed);
        let answered = timeout(self.limits.answer, self.answer(&head, answer)).await;
        answered.map_err(|_| late("it took too long"))?
    }

    async fn answer<F, W>(mut self, head: &[u8], answer: F) -> io::Result<()>
    where
        F: Fn(String) -> W,
        W: Future<Output = Option<Answer>>,
    {
        let Some((path, with_body)) = request(head) else {
            let no = refused("405 Method Not Allowed", "only GET and HEAD are understood\n");
            return reply(&mut self.stream, no, true).await;
        };
        let room = if PROBES.contains(&path.as_str()) { &self.probes } else { &self.others };
        let Ok(_admitted) = room.admitted.try_acquire() else {
            let no = refused(BUSY, "too many ask at the same time; try again\n");
            return reply(&mut self.stream, no, with_body).await;
        };
        // Never closed.
        let Ok(_slot) = room.at_once.acquire().await else { return Ok(()) };
        let found = match outlived(answer(path)).await {
            Ok(found) => found.unwrap_or_else(|| refused("404 Not Found", &self.paths)),
            Err(panic) => {
                tracing::error!(what = words(&panic), "an answer over HTTP met a defect; please report it");
                refused(
                    "500 Internal Server Error",
                    "a defect of ours: there is no answer; the log says more\n",
                )
            }
        };
        reply(&mut self.stream, found, with_body).await
    }
}

/// The head of a request, or as much of it as comes.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

async fn reply(stream: &mut TcpStream, answer: Answer, with_body: bool) -> io::Result<()> {
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
                "/bad" => panic!("a defect that a test put in"),
                _ => None,
            }
        }));
        let said = ask(address, "GET /bad HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 500 ") && said.contains("a defect of ours"), "{said}");
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

    const LONG: Duration = Duration::from_secs(300);
    const PATIENT: Limits = Limits { head: LONG, answer: LONG, silent: 4, at_once: 2, admitted: 3 };

    /// A server whose metrics are never done, and which says when it was asked for them.
    async fn stuck(limits: Limits) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<()>) {
        let listener = listen("--metrics", ([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tx, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(within(limits, listener, "/metrics", move |path: String| {
            let tx = tx.clone();
            async move {
                if path == "/metrics" {
                    tx.send(()).unwrap();
                    std::future::pending::<()>().await;
                }
                Some(Answer::text(true, "ok\n".into()))
            }
        }));
        (address, asked)
    }

    async fn probed(address: SocketAddr) {
        let said = ask(address, "GET /livez HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with("ok\n"), "{said}");
    }

    /// Whether the other side still waits for us.
    fn is_open(stream: &TcpStream) -> bool {
        let mut octet = [0];
        matches!(stream.try_read(&mut octet), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    #[tokio::test]
    async fn questions_that_take_long_leave_room_for_probes_and_are_bounded() {
        let (address, mut asked) = stuck(PATIENT).await;
        let mut slow = Vec::new();
        for _ in 0..PATIENT.admitted {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").await.unwrap();
            slow.push(stream);
        }
        for _ in 0..PATIENT.at_once {
            asked.recv().await.unwrap();
        }
        probed(address).await;
        let said = ask(address, "GET /metrics HTTP/1.1\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("too many"), "{said}");
        probed(address).await;
        assert!(slow.iter().all(is_open), "nobody had to go for that");
        assert!(asked.try_recv().is_err(), "no more than that at once");
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_out() {
        let (address, _asked) = stuck(PATIENT).await;
        let mut silent = Vec::new();
        for i in 0..PATIENT.silent {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(if i % 2 == 0 { b"" } else { b"GET /li" }).await.unwrap();
            silent.push(stream);
        }
        probed(address).await;
        // The probe came as one too many; the one that was there first had to go.
        let mut octet = [0];
        let first = silent[0].read(&mut octet).await;
        assert!(matches!(first, Ok(0) | Err(_)), "{first:?}");
        assert!(silent[1..].iter().all(is_open));
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_is_left_after_a_while() {
        let (address, _asked) = stuck(Limits { head: Duration::from_millis(50), ..PATIENT }).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
        let mut said = String::new();
        let read = stream.read_to_string(&mut said).await;
        assert!(said.is_empty() && (read.is_err() || read.unwrap() == 0), "{said}");
    }
}
