//! Calls everything the pure packages ban. Linted by `cargo xtask layers`, which demands one finding per ban; never
//! built otherwise.

fn main() {
    let _ = std::time::Instant::now();
    let _ = std::time::SystemTime::now();
    let _ = std::thread::spawn(|| ());
    std::thread::sleep(std::time::Duration::ZERO);
    let _ = std::env::var("X");
    let _ = std::env::args();
    let _ = std::fs::read("x");
    let _ = std::fs::write("x", "");
    let _ = std::fs::read_to_string("x");
    let _ = std::fs::File::open("x");
    let _ = std::fs::File::create("x");
    let _ = std::process::Command::new("x");
    let _ = std::net::TcpStream::connect("127.0.0.1:1");
    let _ = std::net::UdpSocket::bind("127.0.0.1:0");
    let _: Option<std::collections::hash_map::RandomState> = None;
}
