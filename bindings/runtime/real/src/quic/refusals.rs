//! Refusals by peers' hosts (ICMP port unreachable), from the socket's error queue.
//!
//! A killed engine's host answers the next packet to it with a refusal, so its death shows within
//! a round trip and not only by silence. Other errors in the queue (no route, too long) can pass
//! and are left to QUIC.

use socket2::SockAddrStorage;
use std::io;
use std::mem;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, BorrowedFd};

/// An entry of the error queue.
pub(super) enum Next {
    /// Nobody listens at this address.
    Refused(SocketAddr),
    /// Something else.
    Other,
    /// There is none.
    Empty,
}

/// Asks the kernel to keep the errors of this socket.
pub(super) fn enable(io: &UdpSocket, ipv6: bool) -> io::Result<()> {
    let (level, name) =
        if ipv6 { (libc::SOL_IPV6, libc::IPV6_RECVERR) } else { (libc::SOL_IP, libc::IP_RECVERR) };
    let on: libc::c_int = 1;
    let length = mem::size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option's value is an int that lives through the call, of the length given.
    let result =
        unsafe { libc::setsockopt(io.as_raw_fd(), level, name, (&raw const on).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Room for a socket error with its offender's address, and more.
#[repr(C, align(16))]
struct Control([u8; 512]);

/// Takes the next entry.
pub(super) fn next(socket: BorrowedFd<'_>) -> Next {
    let mut storage = SockAddrStorage::zeroed();
    let mut control = Control([0; 512]);
    // SAFETY: all-zero is a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = (&raw mut storage).cast();
    header.msg_namelen = storage.size_of();
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the header points to a name and to control memory of the lengths that it gives, both
    // alive through the call; without vectors no payload is written.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    if received < 0 {
        return match io::Error::last_os_error().kind() {
            io::ErrorKind::Interrupted => Next::Other,
            _ => Next::Empty,
        };
    }
    if !refused(&header) {
        return Next::Other;
    }
    // SAFETY: the kernel wrote an address of `msg_namelen` bytes into the storage.
    let address = unsafe { socket2::SockAddr::new(storage, header.msg_namelen) };
    address.as_socket().map_or(Next::Other, Next::Refused)
}

/// Whether one of the control messages is ECONNREFUSED.
fn refused(header: &libc::msghdr) -> bool {
    // SAFETY: the header's control memory was filled by recvmsg, which set its length.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: a non-null result of CMSG_FIRSTHDR and CMSG_NXTHDR points to a whole header
        // within the control memory.
        let found = unsafe { &*message };
        let kind = (found.cmsg_level, found.cmsg_type);
        // SAFETY: CMSG_LEN only computes.
        let needed = unsafe { libc::CMSG_LEN(mem::size_of::<libc::sock_extended_err>() as u32) };
        let errors = [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)];
        if errors.contains(&kind) && found.cmsg_len >= needed as usize {
            // SAFETY: the message is long enough for the structure, which may lie unaligned.
            let error = unsafe {
                libc::CMSG_DATA(message).cast::<libc::sock_extended_err>().read_unaligned()
            };
            if error.ee_errno == libc::ECONNREFUSED.cast_unsigned() {
                return true;
            }
        }
        // SAFETY: `message` is a header within this header's control memory.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    false
}
