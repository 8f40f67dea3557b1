//! Archived UPDATEs through a real session into `brindle-bgpd` and out to a second peer (a collector), over loopback.
//! Needs nothing but the standard library and its neighbor `mrt`; integration/oracles includes both files.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use super::mrt::frame;

/// Everybody's AS: one for documents (RFC 5398); where an archive has it in a path, that is no loop here.
pub const ASN: u16 = 64_509;
/// The reflector's identifier and cluster.
pub const REFLECTOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The sender's identifier.
pub const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const COLLECTOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// What a route without LOCAL_PREF gets.
pub const LOCAL_PREF: u32 = 100;
/// How long anything may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(180);

/// A running `brindle-bgpd` that dials both neighbors.
struct Reflector {
    child: Child,
    dir: PathBuf,
}

impl Reflector {
    fn start(program: &Path, ports: [u16; 2]) -> io::Result<Self> {
        let [first, second] = ports;
        let dir = std::env::temp_dir().join(format!("bt-{}-replay-{first}", std::process::id()));
        fs::create_dir_all(&dir)?;
        let mut text = format!(
            "asNumber: {ASN}\nrouterID: {REFLECTOR}\nclusterID: {REFLECTOR}\nlisten: []\nlocalPref: {LOCAL_PREF}\n\
             adminSocket: {}\npeers:\n",
            dir.join("admin").display()
        );
        for (host, port) in [(2, first), (3, second)] {
            text += &format!(
                "  - {{address: 127.0.0.{host}, port: {port}, asNumber: {ASN}, reflectorClient: true, holdTime: 0, \
                 connectRetry: 1, restartTime: 0, allowOwnAS: 10, maxPrefixes: 3000000, families: [ipv4, ipv6]}}\n"
            );
        }
        let file = dir.join("bgpd.yaml");
        fs::write(&file, text)?;
        let log = fs::File::create(dir.join("log"))?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self { child, dir })
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Reflector {
    fn drop(&mut self) {
        // Fails if it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The messages of a stream, one after the other; ends with it.
fn messages(mut stream: TcpStream) -> Receiver<Vec<u8>> {
    let (to, all) = mpsc::channel();
    thread::spawn(move || {
        let mut head = [0; 19];
        while stream.read_exact(&mut head).is_ok() {
            let len = usize::from(u16::from_be_bytes([head[16], head[17]]));
            let mut message = head.to_vec();
            message.resize(len.max(19), 0);
            if stream.read_exact(message.get_mut(19..).unwrap_or_default()).is_err()
                || to.send(message).is_err()
            {
                return;
            }
        }
    });
    all
}

/// Takes the daemon's connection and answers until the session is established.
fn establish(at: &TcpListener, id: Ipv4Addr, wide: bool) -> io::Result<(TcpStream, Receiver<Vec<u8>>)> {
    let (mut stream, _) = at.accept()?;
    let from = messages(stream.try_clone()?);
    // Both families, route refresh, extended messages, and four octets where the archive has them.
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 6, 0];
    if wide {
        capabilities.extend_from_slice(&[65, 4, 0, 0]);
        capabilities.extend_from_slice(&ASN.to_be_bytes());
    }
    let mut body = vec![4];
    body.extend_from_slice(&ASN.to_be_bytes());
    body.extend_from_slice(&[0, 0]);
    body.extend_from_slice(&id.octets());
    let len = u8::try_from(capabilities.len()).map_err(io::Error::other)?;
    body.extend_from_slice(&[len + 2, 2, len]);
    body.append(&mut capabilities);
    let message = |kind, body: &[u8]| frame(kind, body).ok_or_else(|| io::Error::other("too long"));
    stream.write_all(&message(1, &body)?)?;
    stream.write_all(&message(4, &[])?)?;
    for kind in [1, 4] {
        let got = from.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        if got.get(18) != Some(&kind) {
            return Err(io::Error::other(format!("message {kind} expected: {got:02x?}")));
        }
    }
    Ok((stream, from))
}

/// Sends the frames over one session and gives `done` what comes out of the other, as it comes, until it is content.
/// An error has its last complaint. `wide`: AS numbers in the frames have four octets; to the collector they always have.
pub fn through(
    program: &Path,
    frames: &[Vec<u8>],
    wide: bool,
    mut done: impl FnMut(&[Vec<u8>]) -> Result<(), String>,
) -> Result<(), String> {
    let listen = |host| TcpListener::bind((Ipv4Addr::new(127, 0, 0, host), 0));
    let mut run = || -> io::Result<Result<(), String>> {
        let (sender, collector) = (listen(2)?, listen(3)?);
        let ports = [sender.local_addr()?.port(), collector.local_addr()?.port()];
        let mut daemon = Reflector::start(program, ports)?;
        let (_keep, output) = establish(&collector, COLLECTOR, true)?;
        let (mut stream, answers) = establish(&sender, SENDER, wide)?;
        let octets = frames.concat();
        let sending = thread::spawn(move || stream.write_all(&octets).map(|()| stream));
        let deadline = Instant::now() + PATIENCE;
        let mut complaint = "nothing came".to_owned();
        while Instant::now() < deadline {
            let mut some: Vec<Vec<u8>> = match output.recv_timeout(Duration::from_millis(200)) {
                Ok(first) => [first].into_iter().chain(output.try_iter()).collect(),
                Err(RecvTimeoutError::Timeout) => vec![],
                Err(RecvTimeoutError::Disconnected) => {
                    complaint = "the session with the collector ended".into();
                    break;
                }
            };
            some.retain(|m| m.get(18) == Some(&2));
            match done(&some) {
                Ok(()) => return Ok(Ok(())),
                Err(e) => complaint = e,
            }
            if let Some(n) = answers.try_iter().find(|m| m.get(18) == Some(&3)) {
                complaint = format!("NOTIFICATION to the sender: {n:02x?}; {complaint}");
                break;
            }
            if daemon.child.try_wait()?.is_some() {
                complaint = format!("brindle-bgpd ended; {complaint}");
                break;
            }
        }
        let log = daemon.log();
        drop(daemon);
        // With the daemon gone the writer ends too, whatever is left.
        let _ = sending.join();
        Ok(Err(format!("{complaint}\n{log}")))
    };
    run().map_err(|e| e.to_string())?
}
