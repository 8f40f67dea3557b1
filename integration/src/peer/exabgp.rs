//! ExaBGP: says what it is told to say, and writes down what it hears.

use std::{fs, io::Write as _};

use serde_json::Value;

use super::segment::{Daemon, Segment, eventually, installed};

/// A running ExaBGP.
#[derive(Debug)]
pub struct ExaBgp<'a> {
    segment: &'a Segment,
    host: u8,
    pub daemon: Daemon,
}

impl<'a> ExaBgp<'a> {
    /// Starts it on a host with these neighbors, each of which may `inherit common`: identifier, a hold time of 9 s, and
    /// a process that is told everything.
    pub fn start(segment: &'a Segment, host: u8, local_as: u32, neighbors: &str) -> Self {
        let dir = segment.dir(host);
        let path = |name: &str| dir.join(name).display().to_string();
        fs::write(dir.join("commands"), "").expect("a file of commands");
        // What it is told to do comes out of one file, what it hears goes into another.
        let script = format!(
            "exec 3<&0\ncat <&3 >{} &\nexec tail --pid=$PPID -n +1 -f {}\n",
            path("heard"),
            path("commands")
        );
        fs::write(dir.join("harness.sh"), script).expect("a script");
        let config = format!(
            "process harness {{ run /bin/sh {}; encoder json; }}
template {{ neighbor common {{
  router-id {};
  local-as {local_as};
  hold-time 9;
  api {{ processes [ harness ]; neighbor-changes; receive {{ parsed; open; update; notification; refresh; }} }}
}} }}
{neighbors}
",
            path("harness.sh"),
            Segment::v4(host)
        );
        fs::write(dir.join("exabgp.conf"), config).expect("the configuration can be written");
        let program = installed(&["/usr/sbin/exabgp", "/usr/bin/exabgp"], "exabgp");
        let env = installed(&["/usr/bin/env"], "coreutils");
        let program = program.display().to_string();
        let conf = path("exabgp.conf");
        let args = [
            "exabgp.daemon.user=root",
            "exabgp.api.cli=false",
            "exabgp.log.destination=stdout",
            "exabgp.tcp.bind=",
            &program,
            &conf,
        ];
        let daemon = segment.start(host, "exabgp", &env, &args);
        Self { segment, host, daemon }
    }

    /// Has it do something, e.g. `announce route 10.2.0.0/26 next-hop self`.
    pub fn tell(&self, command: &str) {
        let file = fs::File::options().append(true).open(self.segment.dir(self.host).join("commands"));
        writeln!(file.expect("the file of commands"), "{command}").expect("a command can be written");
    }

    /// Everything it heard, in its own JSON.
    pub fn heard(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.segment.dir(self.host).join("heard")).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// Waits until something was heard for which `that` has an answer.
    #[track_caller]
    pub fn hears<T>(&mut self, what: &str, that: impl Fn(&Value) -> Option<T>) -> T {
        eventually(&format!("ExaBGP hears {what}"), || {
            self.daemon.assert_alive();
            let all = self.heard();
            let last = all.last().map(Value::to_string).unwrap_or_default();
            all.iter().rev().find_map(&that).ok_or(last)
        })
    }

    /// Waits for an announcement of the prefix, and returns its UPDATE.
    #[track_caller]
    pub fn announced(&mut self, prefix: &str) -> Value {
        self.hears(&format!("of {prefix}"), |v| {
            let update = &v["neighbor"]["message"]["update"];
            update["announce"].to_string().contains(&format!("\"{prefix}\"")).then(|| update.clone())
        })
    }

    /// Waits for a withdrawal of the prefix.
    #[track_caller]
    pub fn withdrawn(&mut self, prefix: &str) {
        self.hears(&format!("that {prefix} is gone"), |v| {
            let gone = v["neighbor"]["message"]["update"]["withdraw"].to_string();
            gone.contains(&format!("\"{prefix}\"")).then_some(())
        });
    }
}
