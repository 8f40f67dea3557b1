//! `test-apiserver`: the test API server for a person and for shell tests. Prints the path of a kubeconfig on stdout,
//! then serves until it is ended.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use brindle_integration::kube::{ApiServer, Options};

const USAGE: &str = "usage: test-apiserver [--http] [--listen ADDRESS:PORT] [--kubeconfig FILE] [--populate NODES,PODS,POLICIES] [FILE|FOLDER]...
  Serves the Kubernetes API from memory (HTTPS unless --http; a free port of 127.0.0.1 unless --listen), applies the
  objects of the files given, definitions first, and prints the path of a kubeconfig with all rights.";

fn run() -> Result<(), String> {
    let mut options = Options { tls: true, ..Options::default() };
    let mut kubeconfig = None;
    let mut size = None;
    let mut files = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{a} needs a value\n{USAGE}"));
        match a.as_str() {
            "--http" => options.tls = false,
            "--listen" => {
                options.address =
                    value()?.parse::<SocketAddr>().map_err(|e| format!("--listen: {e}\n{USAGE}"))?;
            }
            "--kubeconfig" => kubeconfig = Some(PathBuf::from(value()?)),
            "--populate" => {
                let n: Result<Vec<usize>, _> = value()?.split(',').map(str::parse).collect();
                size = Some(n.map_err(|e| format!("--populate: {e}\n{USAGE}"))?);
            }
            "-h" | "--help" => {
                print(USAGE);
                return Ok(());
            }
            a if a.starts_with('-') => return Err(format!("{a}: unknown option\n{USAGE}")),
            file => files.push(PathBuf::from(file)),
        }
    }
    let server = ApiServer::start(options);
    for f in &files {
        let n = server.load(f)?;
        eprintln!("{}: {n} objects", f.display());
    }
    if let Some(size) = size {
        let [nodes, pods, policies] = size[..] else {
            return Err(format!("--populate takes three numbers\n{USAGE}"));
        };
        server.populate(nodes, pods, policies);
    }
    let path = kubeconfig
        .unwrap_or_else(|| std::env::temp_dir().join(format!("kubeconfig-{}", server.address().port())));
    server.write_kubeconfig(&path, server.admin_token());
    eprintln!("serving {}", server.url());
    print(&path.display().to_string());
    loop {
        std::thread::park();
    }
}

#[allow(clippy::print_stdout, reason = "the path is this program's product")]
fn print(text: &str) {
    println!("{text}");
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("test-apiserver: {e}");
            ExitCode::from(2)
        }
    }
}
