//! Labs driven the way a script would: through the `brindlectl` binary with `-o json`, by exit code and fields.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use brindle_kernel::netns::NetNs;
use serde_json::Value;

use crate::{bins, diag, netns, process, wait};

/// What `brindlectl` answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Every line of stdout that is JSON.
    pub lines: Vec<Value>,
    pub stderr: String,
}

impl Answer {
    /// The last line: the result.
    pub fn last(&self) -> &Value {
        self.lines.last().unwrap_or(&Value::Null)
    }

    /// The error's text.
    pub fn error(&self) -> &str {
        self.last()["error"].as_str().unwrap_or_default()
    }

    /// Names of the finished stages, in order.
    pub fn stages(&self) -> Vec<&str> {
        self.lines.iter().filter(|l| l["event"] == "stage").filter_map(|l| l["stage"].as_str()).collect()
    }

    /// Panics with everything when the code is another one.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code; answer: {:#?}", self);
        self
    }
}

/// Runs `brindlectl -o json ARGS`.
pub fn ctl(args: &[&str]) -> Answer {
    let out = command(args).output().expect("brindlectl can be started");
    answer(&out)
}

/// `brindlectl -o json ARGS`, not yet started.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(bins::bin("brindlectl"));
    command.args(["-o", "json"]).args(args).stdin(Stdio::null());
    command
}

fn answer(out: &std::process::Output) -> Answer {
    let stdout = String::from_utf8_lossy(&out.stdout);
    Answer {
        code: out.status.code().unwrap_or(-1),
        lines: stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// A lab, removed when dropped; when a test panics its logs are shown first.
#[derive(Debug)]
pub struct Lab {
    name: String,
}

impl Lab {
    /// A name for a lab of this test, not built yet; whatever gets built under it is removed on drop.
    pub fn named(tag: &str) -> Self {
        Self { name: format!("bt-{}-{tag}", std::process::id()) }
    }

    /// Builds a lab; it must come up and be proved.
    #[track_caller]
    pub fn up(tag: &str, args: &[&str]) -> (Self, Answer) {
        let lab = Self::named(tag);
        let up = lab.build(args).expect(0);
        (lab, up)
    }

    /// `lab up` with these arguments, whatever comes of it.
    pub fn build(&self, args: &[&str]) -> Answer {
        ctl(&[&["lab", "up", "--name", &self.name], args].concat())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/brindle-lab/NAME`.
    pub fn dir(&self) -> PathBuf {
        PathBuf::from("/run/brindle-lab").join(&self.name)
    }

    /// `sqlite:…` of the lab's store.
    pub fn store_url(&self) -> String {
        format!("sqlite:{}", self.dir().join("brindle.db").display())
    }

    /// `brindlectl -o json lab --name NAME ARGS`.
    pub fn ctl(&self, args: &[&str]) -> Answer {
        ctl(&[&["lab", "--name", &self.name], args].concat())
    }

    /// Runs a command on a node or in a pod; it must succeed. Gives its stdout.
    #[track_caller]
    pub fn exec(&self, target: &str, argv: &[&str]) -> String {
        let answer = self.ctl(&[&["exec", target, "--"], argv].concat());
        assert_eq!(answer.code, 0, "{argv:?} in {target}: {answer:#?}");
        answer.last()["stdout"].as_str().unwrap_or_default().to_owned()
    }

    /// `brindlectl status` of one node.
    #[track_caller]
    pub fn node_status(&self, node: &str) -> Value {
        let ctl = bins::bin("brindlectl");
        let ctl = ctl.to_str().expect("the path is text");
        let answer = self.ctl(&["exec", node, "--", ctl, "status", "-o", "json"]);
        let text = answer.last()["stdout"].as_str().unwrap_or_default();
        serde_json::from_str(text).unwrap_or_else(|e| panic!("status of {node}: {e}: {answer:#?}"))
    }

    /// The proof, which must be complete.
    #[track_caller]
    pub fn ping_ok(&self) {
        let ping = self.ctl(&["ping"]).expect(0);
        assert_eq!(ping.last()["ok"], true, "{ping:#?}");
    }

    /// Waits for `lab status` to be healthy.
    #[track_caller]
    pub fn wait_healthy(&self, limit: Duration) {
        wait::until("the lab is healthy", limit, || {
            let status = self.ctl(&["status"]);
            if status.code == 0 { Ok(()) } else { Err(format!("{:#}", status.last())) }
        });
    }

    /// The namespace of a node or pod.
    pub fn ns(&self, place: &str) -> NetNs {
        NetNs::named(&format!("{}-{place}", self.name)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `lab down`, and nothing may be left.
    #[track_caller]
    pub fn down(self) {
        self.ctl(&["down"]).expect(0);
        self.assert_gone();
    }

    /// Nothing of the lab is left: namespaces, processes, files.
    #[track_caller]
    pub fn assert_gone(&self) {
        let prefix = format!("{}-", self.name);
        assert_eq!(netns::with_prefix(&prefix), Vec::<String>::new(), "namespaces are left");
        assert!(!self.dir().exists(), "{} is left", self.dir().display());
        // The lab's directory is in the arguments of every process of a node; CNI plugins end by themselves.
        let word = format!("/{}/", self.name);
        wait::until("the lab's processes are gone", Duration::from_secs(60), || {
            let left = process::naming(&word);
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.dir().exists() && netns::with_prefix(&format!("{}-", self.name)).is_empty() {
            return;
        }
        if std::thread::panicking() {
            diag::lab(&self.name);
        }
        let down = self.ctl(&["down"]);
        if down.code != 0 {
            eprintln!("lab {} could not be removed: {down:#?}", self.name);
        }
    }
}

/// Starts `lab up`, kills it with SIGKILL as soon as `when` says so of an event line (or at the end), and tells
/// whether it was killed.
pub fn kill_up(lab: &Lab, args: &[&str], mut when: impl FnMut(&Value) -> bool) -> bool {
    let args = [&["lab", "up", "--name", lab.name()], args].concat();
    let mut command = command(&args);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut running = process::Running::start(&mut command);
    let stdout = running.child().stdout.take().expect("stdout is piped");
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if serde_json::from_str(&line).is_ok_and(|v| when(&v)) {
            running.kill();
            return true;
        }
    }
    running.wait(Duration::from_secs(60));
    false
}
