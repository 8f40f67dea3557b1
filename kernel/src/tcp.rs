//! Socket options of TCP that routing protocols need and no safe crate offers: TCP-MD5 keys (RFC 2385) and the TTL
//! checks of GTSM (RFC 5082). Mechanism only: who gets which key is decided elsewhere.
#![expect(unsafe_code, reason = "setsockopt with structures that libc does not define")]

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// The longest key the kernel takes, octets.
pub const MD5_KEY_MAX: usize = 80;

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
    let key = key.unwrap_or_default();
    if key.len() > MD5_KEY_MAX {
        let what = format!("a TCP-MD5 key may have {MD5_KEY_MAX} octets, this one has {}", key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut sig = TcpMd5Sig {
        addr: storage(peer),
        flags: 0,
        prefixlen: 0,
        keylen: u16::try_from(key.len()).expect("checked against MD5_KEY_MAX"),
        ifindex: 0,
        key: [0; MD5_KEY_MAX],
    };
    sig.key.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
    match set(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, &sig) {
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
        }
    }
}
