//! Which TCP-MD5 key (RFC 2385) connections need that others make to us.
//!
//! The kernel looks at the key before anybody can know whose a connection is, and finds it by the address it comes from alone:
//! by the peer's own key, else by that of the longest range that has one. Not by the port, nor by the device (only a VRF counts
//! there); and "without a key" cannot be said of an address whose range has one. But each listening socket has keys of its own,
//! so what differs by our address can be told apart where we listen on each. What is left is a contradiction in the settings:
//! who is only waited for could never come up ([`Clash`]). Who is connected to has its own key on that connection.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::{IpAddr, SocketAddr},
};

use brindle_bgpd_core::speaker::{DYNAMIC, DynamicPeers, PeerConfig};
use ipnet::IpNet;
use tracing::warn;

/// Keys of one listening socket, with whose they are.
pub(crate) type Keys = BTreeMap<IpNet, Key>;

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) password: String,
    whose: Whose,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key of {}", self.whose)
    }
}

/// Who has a key, or should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Peer { place: usize, name: String },
    Range { place: usize, name: String },
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer { name, .. } => write!(f, "peer {name}"),
            Self::Range { name, .. } => write!(f, "range {name}"),
        }
    }
}

/// The keys the kernel has for one listening socket.
#[derive(Debug, Default)]
pub(crate) struct Held {
    has: BTreeMap<IpNet, Since>,
    /// What it did not take, or did not give up. It is tried again.
    refused: BTreeSet<IpNet>,
}

struct Since {
    password: String,
    /// The count of changes from which on handshakes were under it, and under none that is closer.
    age: u64,
}

impl fmt::Debug for Since {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a key since {}", self.age)
    }
}

impl Held {
    /// Tells the kernel what is another than it has, by `set`; whether anything changed. What it does not take is not
    /// there: who needs that key is refused when it comes ([`Held::of`]).
    pub(crate) fn tell(
        &mut self,
        wanted: &Keys,
        age: u64,
        mut set: impl FnMut(IpNet, Option<&str>) -> io::Result<()>,
    ) -> bool {
        let gone: Vec<IpNet> = self.has.keys().filter(|r| !wanted.contains_key(*r)).copied().collect();
        let before = std::mem::take(&mut self.refused);
        let mut changed = false;
        for range in gone.iter().chain(wanted.keys()) {
            let password = wanted.get(range).map(|k| k.password.as_str());
            if self.has.get(range).map(|k| k.password.as_str()) == password {
                continue;
            }
            if let Err(e) = set(*range, password) {
                if !before.contains(range) {
                    let said = match password {
                        Some(_) => "cannot set the TCP-MD5 key; connections from there will not come up",
                        None => "cannot remove the TCP-MD5 key; connections from there still need it",
                    };
                    warn!(peer = %range, error = %e, "{said}; trying again every few seconds");
                }
                self.refused.insert(*range);
                continue;
            }
            changed = true;
            match password {
                Some(password) => {
                    self.has.insert(*range, Since { password: password.to_owned(), age });
                }
                None => {
                    self.has.remove(range);
                    // What had this key has that of a wider range from now on.
                    self.has.iter_mut().filter(|(r, _)| r.contains(range)).for_each(|(_, k)| k.age = age);
                }
            }
        }
        changed
    }

    /// Whether the kernel has all of them, and no others.
    pub(crate) fn complete(&self) -> bool {
        self.refused.is_empty()
    }

    /// The key that a handshake with somebody there was under, as of this count of changes.
    pub(crate) fn of(&self, remote: IpAddr, age: u64) -> Option<&str> {
        let remote = remote.to_canonical();
        let all = self.has.iter().filter(|(range, _)| range.contains(&remote));
        let (_, key) = all.max_by_key(|(range, _)| range.prefix_len())?;
        (key.age <= age).then_some(key.password.as_str())
    }
}

/// What the settings say of keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Wanted {
    peers: Vec<One>,
    ranges: Vec<Range>,
}

#[derive(Clone, Debug, PartialEq)]
struct One {
    address: IpAddr,
    /// Ours, if it is always the same.
    local: Option<IpAddr>,
    passive: bool,
    password: Option<String>,
    whose: Whose,
}

#[derive(Clone, Debug, PartialEq)]
struct Range {
    range: IpNet,
    password: Option<String>,
    whose: Whose,
}

/// Somebody who needs another key than the kernel asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clash {
    pub(crate) who: Whose,
    decides: Decides,
    from: IpNet,
    /// Nobody connects to it, so it could never come up.
    pub(crate) hopeless: bool,
}

/// By whose settings the kernel goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decides {
    Key(Whose),
    NoKey(Whose),
}

impl fmt::Display for Clash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, decides, from, hopeless } = self;
        let alone = from.prefix_len() == from.max_prefix_len();
        let from = if alone { from.addr().to_string() } else { from.to_string() };
        match decides {
            Decides::Key(whose) => write!(f, "connections from {from} need the TCP-MD5 key of {whose}")?,
            Decides::NoKey(whose) => {
                write!(f, "connections from {from} have no TCP-MD5 key, as {whose} has none")?
            }
        }
        let other = match decides {
            Decides::Key(_) => "another or none",
            Decides::NoKey(_) => "one",
        };
        write!(f, ", since the kernel has one key for an address; {who} has {other}")?;
        match (who, hopeless) {
            (Whose::Range { .. }, _) => f.write_str(", and nobody in it could come up: give both the same"),
            (Whose::Peer { .. }, true) => write!(
                f,
                " and is only waited for, so it could never come up: give both the same, let {who} be connected to, or listen at an address of ours for each"
            ),
            (Whose::Peer { .. }, false) => f.write_str(", and comes up only if it takes our connection"),
        }
    }
}

impl Wanted {
    /// `peers` in the order in which the speaker gives connections to them.
    pub(crate) fn new<'a>(
        peers: impl IntoIterator<Item = &'a PeerConfig>,
        ranges: impl IntoIterator<Item = &'a DynamicPeers>,
    ) -> Self {
        // Guests have the key of their range.
        let listed = peers.into_iter().filter(|p| p.kind != DYNAMIC).enumerate();
        let peers = listed.map(|(place, p)| One {
            address: p.address.to_canonical(),
            local: p.local_address,
            passive: p.passive,
            password: p.password.clone(),
            whose: Whose::Peer { place, name: p.name.clone() },
        });
        let ranges = ranges.into_iter().enumerate().map(|(place, d)| Range {
            range: d.range.trunc(),
            password: d.template.password.clone(),
            whose: Whose::Range { place, name: d.name.clone() },
        });
        Self { peers: peers.collect(), ranges: ranges.collect() }
    }

    /// The keys of the socket that listens at `local`. Of several peers at one address it is that of the one whose a
    /// connection from there will be (`Speaker::settings_for`).
    pub(crate) fn of_socket(&self, local: IpAddr) -> Keys {
        let of_peers = self.expected(local).into_iter().map(|(a, p)| (IpNet::from(a), &p.password, &p.whose));
        let of_ranges = self.ranges.iter().map(|r| (r.range, &r.password, &r.whose));
        of_ranges
            .chain(of_peers)
            .filter(|(range, ..)| range.addr().is_ipv4() == local.is_ipv4())
            .filter_map(|(range, key, whose)| {
                Some((range, Key { password: key.clone()?, whose: whose.clone() }))
            })
            .collect()
    }

    /// Contradictions, as far as the sockets that listen cannot tell who is meant.
    pub(crate) fn clashes(&self, listen: &[SocketAddr]) -> Vec<Clash> {
        let sockets: Vec<Socket<'_>> = listen.iter().map(|at| Socket::new(self, at.ip())).collect();
        let of_peers = self.peers.iter().filter_map(|p| {
            let from = IpNet::from(p.address);
            let fit = sockets.iter().filter(|s| s.is_for(&from) && p.is_for(s.local));
            let decides = decides(fit, from, p.password.as_deref())?;
            Some(Clash { who: p.whose.clone(), decides, from, hopeless: p.passive })
        });
        let of_ranges = self.ranges.iter().filter_map(|r| {
            let fit = sockets.iter().filter(|s| s.is_for(&r.range));
            let decides = decides(fit, r.range, r.password.as_deref())?;
            Some(Clash { who: r.whose.clone(), decides, from: r.range, hopeless: true })
        });
        of_peers.chain(of_ranges).collect()
    }

    /// Whose a connection will be, by the address it comes from.
    fn expected(&self, local: IpAddr) -> BTreeMap<IpAddr, &One> {
        let mut expected: BTreeMap<IpAddr, &One> = BTreeMap::new();
        for one in self.peers.iter().filter(|p| p.is_for(local)) {
            let first = expected.entry(one.address).or_insert(one);
            if one.passive && !first.passive {
                *first = one;
            }
        }
        expected
    }
}

/// One that listens.
struct Socket<'a> {
    local: IpAddr,
    keys: Keys,
    expected: BTreeMap<IpAddr, &'a One>,
}

impl<'a> Socket<'a> {
    fn new(wanted: &'a Wanted, local: IpAddr) -> Self {
        Self { local, keys: wanted.of_socket(local), expected: wanted.expected(local) }
    }

    fn is_for(&self, from: &IpNet) -> bool {
        self.local.is_ipv4() == from.addr().is_ipv4()
    }
}

/// Who has it that connections of somebody with this key, or none, are not let in; `None`: one of the sockets lets them in.
fn decides<'a>(
    mut fit: impl Iterator<Item = &'a Socket<'a>>,
    from: IpNet,
    own: Option<&str>,
) -> Option<Decides> {
    let on = |s: &Socket<'_>| {
        let around = s.keys.iter().filter(|(range, _)| range.contains(&from));
        match (around.max_by_key(|(r, _)| r.prefix_len()), own) {
            (Some((_, key)), own) => {
                (own != Some(key.password.as_str())).then(|| Decides::Key(key.whose.clone()))
            }
            (None, Some(_)) => s.expected.get(&from.addr()).map(|p| Decides::NoKey(p.whose.clone())),
            (None, None) => None,
        }
    };
    let first = on(fit.next()?)?;
    fit.all(|s| on(s).is_some()).then_some(first)
}

impl One {
    /// Whether its connections may come to this address of ours.
    fn is_for(&self, local: IpAddr) -> bool {
        local.is_unspecified() || self.local.is_none_or(|a| a.to_canonical() == local.to_canonical())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, port: u16, key: Option<&str>) -> PeerConfig {
        let address = "10.0.0.2".parse().unwrap();
        PeerConfig { port, password: key.map(Into::into), ..PeerConfig::new(name, address, 1) }
    }

    fn waits(p: PeerConfig) -> PeerConfig {
        PeerConfig { passive: true, ..p }
    }

    fn range(net: &str, key: Option<&str>) -> DynamicPeers {
        let any = "0.0.0.0".parse().unwrap();
        let template = PeerConfig { password: key.map(Into::into), ..PeerConfig::new("", any, 1) };
        DynamicPeers { name: net.into(), range: net.parse().unwrap(), max: 1, template }
    }

    fn said(peers: &[PeerConfig], ranges: &[DynamicPeers], listen: &[&str]) -> Vec<String> {
        let listen: Vec<SocketAddr> = listen.iter().map(|a| a.parse().unwrap()).collect();
        let clashes = Wanted::new(peers, ranges).clashes(&listen);
        clashes.iter().map(|c| format!("{}{c}", if c.hopeless { "! " } else { "" })).collect()
    }

    /// The key of a socket for an address.
    fn of(keys: &Keys, remote: IpAddr) -> Option<String> {
        let mut held = Held::default();
        held.tell(keys, 0, |_, _| Ok(()));
        held.of(remote, 0).map(str::to_owned)
    }

    fn keys(range: &[DynamicPeers]) -> Keys {
        Wanted::new([], range).of_socket("0.0.0.0".parse().unwrap())
    }

    #[test]
    fn what_the_kernel_does_not_take_or_give_up_is_tried_again() {
        let (net, from) = ("10.0.0.0/24", "10.0.0.9".parse().unwrap());
        let mut held = Held::default();
        let fails = |_: IpNet, _: Option<&str>| Err(io::Error::from(io::ErrorKind::OutOfMemory));
        let first = keys(&[range(net, Some("a"))]);
        assert!(!held.tell(&first, 1, fails) && !held.complete());
        assert_eq!(held.of(from, 1), None);
        assert!(held.tell(&first, 2, |_, _| Ok(())) && held.complete());
        assert_eq!((held.of(from, 2), held.of(from, 1)), (Some("a"), None), "not who came before");
        // Another, and none: the kernel still has the old one, and says so until it is gone.
        for wanted in [keys(&[range(net, Some("b"))]), Keys::new()] {
            assert!(!held.tell(&wanted, 3, fails) && !held.complete());
            assert_eq!(held.of(from, 3), Some("a"));
        }
        let mut asked = Vec::new();
        assert!(held.tell(&Keys::new(), 4, |range, password| {
            asked.push((range.to_string(), password.map(str::to_owned)));
            Ok(())
        }));
        assert_eq!(asked, [(net.to_owned(), None)]);
        assert!(held.complete() && held.of(from, 4).is_none());
        assert!(!held.tell(&Keys::new(), 5, fails), "nothing left to do");
    }

    #[test]
    fn who_came_under_a_key_that_is_gone_has_not_come_under_that_of_the_range_around_it() {
        let (wide, from) = (range("10.0.0.0/8", Some("w")), "10.0.0.9".parse().unwrap());
        let mut held = Held::default();
        held.tell(&keys(&[wide.clone(), range("10.0.0.0/24", Some("n"))]), 1, |_, _| Ok(()));
        assert_eq!(held.of(from, 1), Some("n"));
        held.tell(&keys(&[wide]), 2, |_, _| Ok(()));
        assert_eq!((held.of(from, 1), held.of(from, 2)), (None, Some("w")));
    }

    const EVERYWHERE: &[&str] = &["0.0.0.0:179", "[::]:179"];

    #[test]
    fn of_two_speakers_at_one_address_the_one_that_is_waited_for_has_the_key() {
        let two = [peer("dialled", 1179, Some("b")), waits(peer("waits", 179, Some("a")))];
        let keys = Wanted::new(&two, []).of_socket("0.0.0.0".parse().unwrap());
        assert_eq!(of(&keys, two[0].address).as_deref(), Some("a"));
        let words = said(&two, &[], EVERYWHERE);
        assert_eq!(words.len(), 1, "{words:?}");
        assert!(
            words[0].starts_with("connections from 10.0.0.2 need the TCP-MD5 key of peer waits"),
            "{words:?}"
        );
        assert!(words[0].contains("peer dialled has another or none, and comes up only if"), "{words:?}");
        // As much the other way round.
        let words =
            said(&[waits(peer("open", 179, None)), waits(peer("keyed", 1179, Some("k")))], &[], EVERYWHERE);
        assert_eq!(words.len(), 1, "{words:?}");
        assert!(
            words[0].starts_with("! connections from 10.0.0.2 have no TCP-MD5 key, as peer open has none"),
            "{words:?}"
        );
        assert!(words[0].contains("peer keyed has one and is only waited for"), "{words:?}");
        // The same key, or no socket: nothing to say.
        assert!(said(&[peer("a", 179, Some("k")), peer("b", 1179, Some("k"))], &[], EVERYWHERE).is_empty());
        assert!(said(&two, &[], &["[::]:179"]).is_empty());
    }

    #[test]
    fn who_is_only_waited_for_and_needs_another_key_is_named_with_the_other() {
        let two = [waits(peer("one", 179, Some("a"))), waits(peer("other", 1179, None))];
        let words = said(&two, &[], EVERYWHERE);
        assert_eq!(words.len(), 1, "{words:?}");
        assert!(words[0].starts_with("! ") && words[0].contains("key of peer one"), "{words:?}");
        assert!(words[0].contains("peer other has another or none and is only waited for"), "{words:?}");
    }

    #[test]
    fn a_range_with_a_key_counts_for_peers_and_ranges_in_it_that_have_none() {
        let wide = range("10.0.0.0/8", Some("k"));
        let words =
            said(&[waits(peer("p", 179, None))], &[wide.clone(), range("10.0.0.0/24", None)], EVERYWHERE);
        assert_eq!(words.len(), 2, "{words:?}");
        assert!(words[0].contains("key of range 10.0.0.0/8") && words[0].contains("peer p has"), "{words:?}");
        assert!(
            words[1].contains("connections from 10.0.0.0/24 need") && words[1].starts_with("! "),
            "{words:?}"
        );
        // A key of one's own is the longer prefix.
        assert!(said(&[waits(peer("p", 179, Some("own")))], &[wide], EVERYWHERE).is_empty());
    }

    #[test]
    fn each_socket_has_its_own_keys_so_our_addresses_tell_peers_apart() {
        let at = |p: PeerConfig, local: &str| PeerConfig { local_address: local.parse().ok(), ..waits(p) };
        let two = [at(peer("a", 179, Some("a")), "10.0.0.10"), at(peer("b", 1179, Some("b")), "10.0.0.11")];
        assert!(said(&two, &[], &["10.0.0.10:179", "10.0.0.11:179"]).is_empty());
        let keys = Wanted::new(&two, []).of_socket("10.0.0.11".parse().unwrap());
        assert_eq!(of(&keys, two[0].address).as_deref(), Some("b"));
        assert_eq!(said(&two, &[], EVERYWHERE).len(), 1, "one socket for both");
    }
}
