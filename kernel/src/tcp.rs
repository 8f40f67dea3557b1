//! Socket options of TCP that routing protocols need and no safe crate offers: TCP-MD5 keys (RFC 2385) and the TTL
//! checks of GTSM (RFC 5082). Mechanism only: who gets which key is decided elsewhere.
#![expect(unsafe_code, reason = "setsockopt with structures that libc does not define")]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use ipnet::IpNet;

/// The longest key the kernel takes, octets.
pub const MD5_KEY_MAX: usize = 80;

/// linux/tcp.h: `struct tcp_md5sig` with flags.
const TCP_MD5SIG_EXT: libc::c_int = 32;
/// The key is for the prefix.
const MD5_FLAG_PREFIX: u8 = 1;

/// `struct tcp_md5sig` of linux/tcp.h: address, flags, prefix length, key length, ifindex, key.
#[repr(C)]
struct TcpMd5Sig {
    addr: libc::sockaddr_storage,
    flags: u8,
    prefixlen: u8,
    keylen: u16,
    ifindex: i32,
    key: [u8; MD5_KEY_MAX],
}

/// Requires segments to and from `peer` on this socket to be signed with `key`; `None` removes the requirement.
/// On a listening socket the key holds for connections still to come; they inherit it.
///
/// # Errors
/// `InvalidInput` for a key that is empty or longer than [`MD5_KEY_MAX`]; otherwise the kernel's refusal, e.g.
/// ENOPROTOOPT without CONFIG_TCP_MD5SIG. Removing a key that is not set succeeds.
pub fn set_md5(socket: impl AsFd, peer: IpAddr, key: Option<&[u8]>) -> io::Result<()> {
    set_md5_of(socket.as_fd(), peer, None, key)
}

/// The same for everybody in `range` (TCP_MD5SIG_EXT, Linux 4.13). The longest range of an address counts.
///
/// # Errors
/// As [`set_md5`].
pub fn set_md5_range(socket: impl AsFd, range: IpNet, key: Option<&[u8]>) -> io::Result<()> {
    set_md5_of(socket.as_fd(), range.network(), Some(range.prefix_len()), key)
}

fn set_md5_of(
    socket: BorrowedFd<'_>,
    peer: IpAddr,
    prefix_len: Option<u8>,
    key: Option<&[u8]>,
) -> io::Result<()> {
    let key = key.unwrap_or_default();
    if key.len() > MD5_KEY_MAX {
        let what = format!("a TCP-MD5 key may have {MD5_KEY_MAX} octets, this one has {}", key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut sig = TcpMd5Sig {
        addr: storage(peer),
        flags: if prefix_len.is_some() { MD5_FLAG_PREFIX } else { 0 },
        prefixlen: prefix_len.unwrap_or(0),
        keylen: u16::try_from(key.len()).expect("checked against MD5_KEY_MAX"),
        ifindex: 0,
        key: [0; MD5_KEY_MAX],
    };
    sig.key.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    let option = if prefix_len.is_some() { TCP_MD5SIG_EXT } else { libc::TCP_MD5SIG };
    match set(socket, libc::IPPROTO_TCP, option, &sig) {
        // Removing what is not there.
        Err(e) if key.is_empty() && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// TTL (hop limit) of packets sent on this socket.
///
/// # Errors
/// The kernel's refusal.
pub fn set_ttl(socket: impl AsFd, ipv4: bool, ttl: u8) -> io::Result<()> {
    let (level, name) =
        if ipv4 { (libc::IPPROTO_IP, libc::IP_TTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) };
    set(socket.as_fd(), level, name, &libc::c_int::from(ttl))
}

/// Packets that arrive with a smaller TTL (hop limit) are dropped by the kernel before TCP sees them. 0 = accept all.
///
/// # Errors
/// The kernel's refusal.
pub fn set_min_ttl(socket: impl AsFd, ipv4: bool, ttl: u8) -> io::Result<()> {
    let (level, name) =
        if ipv4 { (libc::IPPROTO_IP, libc::IP_MINTTL) } else { (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT) };
    set(socket.as_fd(), level, name, &libc::c_int::from(ttl))
}

/// DSCP CS6, as a TOS octet: network control, where BGP belongs (RFC 4594 section 3.2).
pub const TOS_CS6: u8 = 0xC0;

/// Type of service (IPv4) or traffic class (IPv6) of packets sent on this socket.
///
/// # Errors
/// The kernel's refusal.
pub fn set_tos(socket: impl AsFd, ipv4: bool, tos: u8) -> io::Result<()> {
    let (level, name) =
        if ipv4 { (libc::IPPROTO_IP, libc::IP_TOS) } else { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) };
    set(socket.as_fd(), level, name, &libc::c_int::from(tos))
}

/// The index of a network device of this process's namespace.
///
/// # Errors
/// There is no such device, with its name.
pub fn device_index(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name)
        .map_err(|e| io::Error::new(io::ErrorKind::NotFound, format!("interface {name:?}: {}", e.desc())))
}

/// The device that gives a link-local address its meaning; `None` for any other address, and for a device that has gone.
pub fn device_of(address: SocketAddr) -> Option<String> {
    match address {
        SocketAddr::V6(a) if a.ip().is_unicast_link_local() => {
            nix::net::if_::if_indextoname(a.scope_id()).ok()?.into_string().ok()
        }
        SocketAddr::V4(_) | SocketAddr::V6(_) => None,
    }
}

/// Whether an error means that this kernel has no such address family (IPv6 compiled out or disabled at boot).
pub fn is_family_missing(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn set<T>(socket: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("option structures are small");
    // SAFETY: `value` is a live, fully initialised `T` and `len` its size; the kernel only reads that many bytes. The
    // descriptor is open for the duration of the borrow.
    let rc =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn storage(ip: IpAddr) -> libc::sockaddr_storage {
    // SAFETY: sockaddr_storage is plain integers and padding; all zeroes is a valid value of it.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let place = std::ptr::from_mut(&mut storage);
    match ip {
        IpAddr::V4(a) => {
            let addr = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: 0,
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(a.octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address, by definition.
            unsafe { place.cast::<libc::sockaddr_in>().write(addr) };
        }
        IpAddr::V6(a) => {
            let addr = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: a.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(addr) };
        }
    }
    storage
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn the_md5_structure_has_the_layout_of_the_kernel_header() {
        assert_eq!(size_of::<libc::sockaddr_storage>(), 128);
        assert_eq!(size_of::<TcpMd5Sig>(), 216);
        assert_eq!(std::mem::offset_of!(TcpMd5Sig, key), 136);
    }

    fn talk(ip: IpAddr, theirs: Option<&[u8]>, ours: Option<&[u8]>) -> io::Result<()> {
        let listener = TcpListener::bind(SocketAddr::new(ip, 0))?;
        set_md5(&listener, ip, ours)?;
        let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        set_md5(&socket, ip, theirs)?;
        socket.connect_timeout(&listener.local_addr()?.into(), Duration::from_millis(200))?;
        let mut client: TcpStream = socket.into();
        client.write_all(b"x")?;
        let mut byte = [0];
        listener.accept()?.0.read_exact(&mut byte)
    }

    #[test]
    fn only_the_same_key_on_both_sides_connects() {
        for ip in ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()] {
            talk(ip, Some(b"secret"), Some(b"secret")).unwrap();
            talk(ip, None, None).unwrap();
            assert!(talk(ip, Some(b"secret"), Some(b"other")).is_err(), "{ip}");
            assert!(talk(ip, None, Some(b"other")).is_err(), "{ip}");
        }
    }

    #[test]
    fn a_key_for_a_range_holds_for_its_members() {
        for (ip, range) in [("127.0.0.1", "127.0.0.0/8"), ("::1", "::/64")] {
            let ip: IpAddr = ip.parse().unwrap();
            for (key, connects) in [(Some(&b"secret"[..]), true), (Some(&b"other"[..]), false), (None, false)]
            {
                let listener = TcpListener::bind(SocketAddr::new(ip, 0)).unwrap();
                set_md5_range(&listener, range.parse().unwrap(), Some(b"secret")).unwrap();
                let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
                let socket = Socket::new(domain, Type::STREAM, None).unwrap();
                set_md5(&socket, ip, key).unwrap();
                let to = listener.local_addr().unwrap().into();
                let up = socket.connect_timeout(&to, Duration::from_millis(300)).is_ok();
                assert_eq!(up, connects, "{ip} {key:?}");
                // Twice: removing what is gone is no error.
                set_md5_range(&listener, range.parse().unwrap(), None).unwrap();
                set_md5_range(&listener, range.parse().unwrap(), None).unwrap();
            }
        }
    }

    #[test]
    fn devices_are_found_by_name_and_named_when_they_are_not() {
        assert!(device_index("lo").unwrap() > 0);
        assert!(device_index("none0").unwrap_err().to_string().contains("none0"));
    }

    #[test]
    fn keys_that_are_too_long_are_refused_with_their_length() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let e = set_md5(&listener, "127.0.0.1".parse().unwrap(), Some(&[7; 81])).unwrap_err();
        assert!(e.to_string().contains("81"), "{e}");
    }

    #[test]
    fn ttl_options_are_taken_by_both_families() {
        for (bind, v4) in [("127.0.0.1:0", true), ("[::1]:0", false)] {
            let listener = TcpListener::bind(bind).unwrap();
            set_ttl(&listener, v4, 255).unwrap();
            set_min_ttl(&listener, v4, 254).unwrap();
            set_tos(&listener, v4, TOS_CS6).unwrap();
        }
    }
}
