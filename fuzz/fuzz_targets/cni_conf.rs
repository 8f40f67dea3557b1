//! What a runtime hands the CNI plugin: configuration on standard input, the environment, and the journal files the
//! plugin left itself.
//!
//! Held to: any bytes give a configuration or an error with a code of the specification and words; results of earlier
//! plugins survive being added to, in every version; records survive being written again.
#![no_main]

use brindle_cni::{
    conf::{Conf, VERSIONS, Version, version_hint},
    env::{self, Attachment, Command},
    error::CniError,
    journal,
    result::{self, Answer, Interface},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let version = version_hint(data);
    match Conf::parse(data, Command::Add) {
        Err(e) => check_error(&version, &e),
        Ok(conf) => match conf.prev_answer() {
            Err(e) => check_error(&version, &e),
            Ok(before) => {
                for text in VERSIONS {
                    let version = Version::parse(text).expect("a version of the list");
                    let addresses = ["10.0.0.1/32".parse().expect("an address")];
                    let (host, pod) = (Interface::default(), Interface::default());
                    let answer =
                        Answer::attached(version, host, pod, &addresses, conf.dns.clone(), before.clone());
                    let json = serde_json::to_vec(&answer).expect("an answer is JSON");
                    let again: Answer = serde_json::from_slice(&json).expect("what we write we read");
                    assert_eq!(again, answer);
                }
            }
        },
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let values: Vec<&str> = text.split('\n').collect();
        let lookup = |name: &str| {
            let names = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"];
            let at = names.iter().position(|n| *n == name)?;
            values.get(at).map(|v| (*v).to_owned())
        };
        if let Err(e) = env::command(&lookup) {
            check_error(&version, &e);
        }
        for command in [Command::Add, Command::Del, Command::Check] {
            match Attachment::read(&lookup, command) {
                Err(e) => check_error(&version, &e),
                // Names of devices and files are made of these.
                Ok(a) => {
                    assert!(!a.container_id.contains('/') && !a.ifname.contains('/') && a.ifname.len() < 16)
                }
            }
        }
    }
    if let Ok(record) = journal::decode::<journal::Record>(data) {
        assert_eq!(journal::decode(&journal::encode(&record)), Ok(record));
    }
});

fn check_error(version: &str, e: &CniError) {
    assert!((1..100).contains(&e.code) || (100..200).contains(&e.code), "{e:?}");
    assert!(!e.message.is_empty());
    let json = result::error(version, e).to_string();
    assert!(!json.contains('\n'));
}
