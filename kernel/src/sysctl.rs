//! Kernel parameters under /proc/sys.
//!
//! The kernel resolves `net/…` in the network namespace of the *calling thread*, so these functions see the right one
//! inside [`crate::netns::NetNs::run`]. (/proc/net, in contrast, follows the main thread.)
//!
//! In a container /proc/sys is read-only; there the host's folder is mounted elsewhere and `BRINDLE_SYSCTL_DIR` names it.

use std::{fs, io, os::unix::fs::FileExt, path::PathBuf, sync::OnceLock};

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{verb} sysctl {key}: {source}")]
pub struct SysctlError {
    verb: String,
    key: String,
    source: io::Error,
}

impl SysctlError {
    #[cfg(feature = "fake")]
    pub(crate) fn made(verb: &str, key: &str, errno: i32) -> Self {
        Self { verb: verb.into(), key: key.into(), source: io::Error::from_raw_os_error(errno) }
    }

    /// The parameter does not exist (feature missing, or its device is gone).
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Positive errno, 0 if there is none behind this.
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Where the parameters are.
fn root() -> &'static PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let given = std::env::var_os("BRINDLE_SYSCTL_DIR").filter(|d| !d.is_empty());
        given.map_or_else(|| PathBuf::from("/proc/sys"), PathBuf::from)
    })
}

/// As sysctl(8): whichever of `.` and `/` comes first separates, the other one is an ordinary character, so that
/// `net/ipv4/conf/eth0.100/forwarding` names a VLAN device.
fn path_of(key: &str) -> io::Result<PathBuf> {
    let swap = key.find(['.', '/']).is_some_and(|at| key.as_bytes().get(at) == Some(&b'.'));
    let rel: String = if swap {
        key.chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect()
    } else {
        key.to_owned()
    };
    if rel.is_empty() || rel.split('/').any(|p| p.is_empty() || p == "..") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a parameter name like net/ipv4/ip_forward",
        ));
    }
    Ok(root().join(rel))
}

/// The value, without the line end.
pub fn get(key: &str) -> Result<String, SysctlError> {
    path_of(key).and_then(fs::read_to_string).map(|v| v.trim_end().to_owned()).map_err(|source| SysctlError {
        verb: "read".into(),
        key: key.into(),
        source,
    })
}

/// Writes the value.
pub fn set(key: &str, value: &str) -> Result<(), SysctlError> {
    // Not fs::write: it would create a file if /proc/sys were something else.
    let write = |path: PathBuf| {
        let mut file = fs::OpenOptions::new().write(true).open(path)?;
        io::Write::write_all(&mut file, value.as_bytes())
    };
    path_of(key).and_then(write).map_err(|source| SysctlError {
        verb: format!("write {value:?} to"),
        key: key.into(),
        source,
    })
}

/// Writes the value unless it is there already; true if it was written.
pub fn ensure(key: &str, value: &str) -> Result<bool, SysctlError> {
    // One descriptor for both: agents do this several times for each pod.
    let opened = path_of(key).and_then(|p| fs::OpenOptions::new().read(true).write(true).open(p));
    let Ok(file) = opened else {
        // Where nothing may be written it may be right all the same.
        return if get(key)? == value { Ok(false) } else { set(key, value).map(|()| true) };
    };
    let mut have = [0; 128];
    let failed = |verb: String| move |source| SysctlError { verb, key: key.into(), source };
    let n = file.read_at(&mut have, 0).map_err(failed("read".into()))?;
    if have.get(..n).unwrap_or_default().trim_ascii_end() == value.as_bytes() {
        return Ok(false);
    }
    // From its beginning: the kernel ignores numbers written behind it.
    file.write_all_at(value.as_bytes(), 0).map_err(failed(format!("write {value:?} to"))).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn the_first_separator_decides() {
        let p = |k| path_of(k).unwrap().display().to_string();
        assert_eq!(p("net.ipv4.ip_forward"), "/proc/sys/net/ipv4/ip_forward");
        assert_eq!(p("net/ipv4/conf/eth0.100/forwarding"), "/proc/sys/net/ipv4/conf/eth0.100/forwarding");
        assert_eq!(p("net.ipv4.conf.eth0/100.forwarding"), "/proc/sys/net/ipv4/conf/eth0.100/forwarding");
        for bad in ["", "/etc/passwd", "net/../../etc/passwd", "net//x"] {
            assert!(path_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_write_in_a_namespace_stays_there() {
        let name = format!("bt-{}-sysctl", std::process::id());
        let ns = NetNs::create(&name).unwrap();
        let key = "net/ipv4/conf/lo/proxy_arp";
        let before = get(key).unwrap();
        let (changed, again, inside) =
            ns.run(|| (ensure(key, "1").unwrap(), ensure(key, "1").unwrap(), get(key).unwrap())).unwrap();
        NetNs::delete(&name).unwrap();
        assert!(changed && !again);
        assert_eq!(inside, "1");
        assert_eq!(get(key).unwrap(), before);
    }

    #[test]
    fn an_unknown_parameter_is_named() {
        let e = get("net/ipv4/conf/nosuchdevice/forwarding").unwrap_err();
        assert!(e.is_not_found());
        assert!(e.to_string().contains("net/ipv4/conf/nosuchdevice/forwarding"), "{e}");
    }
}
