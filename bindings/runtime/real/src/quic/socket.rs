//! The UDP socket of a core: batches in, segmented batches out, and refusals by peers' hosts.

use super::refusals;
use crate::error::{Error, Result};
use bytes::BytesMut;
use quinn_proto::{EcnCodepoint, Transmit};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

/// Buffers of one receive call. Each can hold many segments, so four bound the work of a turn.
const RECEIVE_BATCH: usize = 4;
const RECEIVE_BUFFER: usize = 64 << 10;

/// A datagram can have at most this many bytes in all its segments together.
const SEGMENTS_BYTES_MAX: usize = 65_000;

/// How long an address may stay taken when a link begins to listen, and how often it is tried.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
const BIND_INTERVAL: Duration = Duration::from_millis(10);

/// Datagrams of one sender, in one buffer.
pub(super) struct Received {
    pub(super) from: SocketAddr,
    pub(super) to: Option<IpAddr>,
    pub(super) ecn: Option<EcnCodepoint>,
    /// Length of each but the last.
    pub(super) stride: usize,
    pub(super) data: BytesMut,
}

/// What became of a transmit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// With the kernel, or dropped as a network may.
    Done,
    /// The socket's buffer is full.
    Blocked,
}

pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    mtu: usize,
    buffers: Vec<Box<[u8]>>,
    /// The error queue may have something.
    errors: bool,
}

impl Socket {
    pub(super) fn bind(listen: SocketAddr, mtu: u16, buffer: usize) -> Result<Socket> {
        let failed = |source: io::Error| Error::Listen { address: listen, source };
        let io = bind_patiently(listen).map_err(failed)?;
        let state = UdpSocketState::new(UdpSockRef::from(&io)).map_err(failed)?;
        enlarge(&io, &state, buffer);
        if let Err(error) = refusals::enable(&io, listen.is_ipv6()) {
            // Then a dead peer is noticed by its silence.
            tracing::debug!(%error, "refusals by peers' hosts are not reported");
        }
        let local = io.local_addr().map_err(failed)?;
        let buffers = vec![vec![0; RECEIVE_BUFFER].into_boxed_slice(); RECEIVE_BATCH];
        Ok(Socket { io, state, local, mtu: usize::from(mtu), buffers, errors: false })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(super) fn fd(&self) -> RawFd {
        self.io.as_raw_fd()
    }

    /// Packets that may go out in one call.
    pub(super) fn segments_max(&self) -> usize {
        self.state.max_gso_segments().min(SEGMENTS_BYTES_MAX / self.mtu).max(1)
    }

    /// Receives what is there, up to a bound; true when there was anything.
    pub(super) fn receive(&mut self, mut each: impl FnMut(Received)) -> bool {
        let mut metas = [RecvMeta::default(); RECEIVE_BATCH];
        let count = {
            let mut buffers = self.buffers.iter_mut();
            let mut slices: [IoSliceMut<'_>; RECEIVE_BATCH] = std::array::from_fn(|_| {
                IoSliceMut::new(buffers.next().expect("a buffer for each slice"))
            });
            match self.state.recv(UdpSockRef::from(&self.io), &mut slices, &mut metas) {
                Ok(count) => count,
                Err(error) => {
                    self.errors |= error.kind() != io::ErrorKind::WouldBlock;
                    return false;
                }
            }
        };
        for (meta, buffer) in metas.iter().zip(&self.buffers).take(count) {
            if meta.len == 0 || meta.stride == 0 {
                continue;
            }
            each(Received {
                from: meta.addr,
                to: meta.dst_ip,
                ecn: meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
                stride: meta.stride,
                data: BytesMut::from(&buffer[..meta.len.min(buffer.len())]),
            });
        }
        count > 0
    }

    /// Sends. Errors are the network's losses, but for refusals, which are looked up.
    pub(super) fn send(&mut self, transmit: &Transmit, contents: &[u8]) -> Sent {
        let datagram = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: transmit.ecn.and_then(|ecn| quinn_udp::EcnCodepoint::from_bits(ecn as u8)),
            contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        // An error that was reported for an earlier datagram is returned once, in place of
        // sending: so try twice.
        for _ in 0..2 {
            match self.state.try_send(UdpSockRef::from(&self.io), &datagram) {
                Ok(()) => return Sent::Done,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Blocked,
                Err(error) => {
                    self.errors = true;
                    tracing::trace!(%error, to = %transmit.destination, "a datagram was not sent");
                }
            }
        }
        Sent::Done
    }

    /// The socket was ready and yet had no datagram: look for errors.
    pub(super) fn suspect_errors(&mut self) {
        self.errors = true;
    }

    /// The next peer whose host says that nobody listens there.
    pub(super) fn next_refusal(&mut self) -> Option<SocketAddr> {
        while self.errors {
            match refusals::next(self.io.as_fd()) {
                refusals::Next::Refused(peer) => return Some(peer),
                refusals::Next::Other => {}
                refusals::Next::Empty => self.errors = false,
            }
        }
        None
    }
}

/// Beyond the system's limit where this process may, else up to it.
/// Binds, waiting a while for a predecessor: the kernel closes the socket of a killed process only
/// after it has taken that process's ring apart, and that after the process has been waited for.
fn bind_patiently(listen: SocketAddr) -> io::Result<UdpSocket> {
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match UdpSocket::bind(listen) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(BIND_INTERVAL);
            }
            other => return other,
        }
    }
}

fn enlarge(io: &UdpSocket, state: &UdpSocketState, buffer: usize) {
    use rustix::net::sockopt;
    let reference = || UdpSockRef::from(io);
    let failed = |error: io::Error| tracing::debug!(%error, "a socket buffer keeps its size");
    if sockopt::set_socket_recv_buffer_size_force(io, buffer).is_err() {
        state.set_recv_buffer_size(reference(), buffer).unwrap_or_else(failed);
    }
    if sockopt::set_socket_send_buffer_size_force(io, buffer).is_err() {
        state.set_send_buffer_size(reference(), buffer).unwrap_or_else(failed);
    }
    // The kernel reports twice what can be used.
    let size = state.recv_buffer_size(reference()).unwrap_or(0) / 2;
    if size < buffer {
        tracing::info!(
            size,
            wanted = buffer,
            "the socket's receive buffer is small, so bulk transfers may lose packets; raise \
             sysctl net.core.rmem_max"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_predecessor_that_goes_is_waited_for() {
        let predecessor = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = predecessor.local_addr().unwrap();
        let leaving = std::thread::spawn(move || {
            std::thread::sleep(10 * BIND_INTERVAL);
            drop(predecessor);
        });
        assert_eq!(bind_patiently(address).unwrap().local_addr().unwrap(), address);
        leaving.join().unwrap();
    }
}
