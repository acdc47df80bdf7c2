//! The connection's socket: messages come whole or not at all, replies leave without blocking.
//!
//! rust-vmm's request handler reads from a blocking socket, spins on a non-blocking one, and cannot
//! put an answer off; a front end that sends half a message would hold up every other vdisk of the
//! core. So the framing is here, over its message definitions.
//!
//! A message is a header of 12 bytes (request, flags, size; native order) and `size` bytes of body;
//! descriptors come with any of its bytes. No read goes beyond a message's end, so descriptors
//! never reach the wrong message.

use crate::error::Hangup;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag, VhostUserMsgValidator,
};

const HEADER: usize = 12;
const VERSION: u32 = 1;

/// A message of the front end.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) code: FrontendReq,
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) files: Vec<OwnedFd>,
}

impl Message {
    /// A hang-up because of this message.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> Hangup {
        Hangup::Message { code: self.code.into(), what: what.into() }
    }

    /// The body as exactly one `T`, of valid form.
    pub(crate) fn body<T: VhostUserMsgValidator + Default>(&self) -> Result<T, Hangup> {
        let mut value = T::default();
        if self.body.len() != size_of::<T>() {
            return Err(self.wrong(format!("{} bytes of body", self.body.len())));
        }
        value.as_mut_slice().copy_from_slice(&self.body);
        if value.is_valid() { Ok(value) } else { Err(self.wrong("malformed body")) }
    }

    /// The body of a message that has none.
    pub(crate) fn no_body(&self) -> Result<(), Hangup> {
        if self.body.is_empty() { Ok(()) } else { Err(self.wrong("unexpected body")) }
    }

    /// The one descriptor that must be there.
    pub(crate) fn file(&mut self) -> Result<OwnedFd, Hangup> {
        match self.files.len() {
            1 => Ok(self.files.remove(0)),
            count => Err(self.wrong(format!("{count} descriptors instead of one"))),
        }
    }
}

/// The socket, the message that is coming in, and the reply that is going out.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: OwnedFd,
    header: [u8; HEADER],
    received: usize,
    body: Vec<u8>,
    files: Vec<OwnedFd>,
    unsent: Vec<u8>,
    unsent_file: Option<OwnedFd>,
}

impl Channel {
    /// `stream` is a connected, non-blocking stream socket.
    pub(crate) fn new(stream: OwnedFd) -> Channel {
        Channel {
            stream,
            header: [0; HEADER],
            received: 0,
            body: Vec::new(),
            files: Vec::new(),
            unsent: Vec::new(),
            unsent_file: None,
        }
    }

    /// The next whole message, if it is there. While a reply waits for room nothing is read: a
    /// front end that does not read cannot make the backlog grow.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, Hangup> {
        if !self.flush()? {
            return Ok(None);
        }
        loop {
            if self.received >= HEADER && self.received == HEADER + self.body.len() {
                return self.finish().map(Some);
            }
            match self.receive_some()? {
                0 => return Ok(None),
                count => self.received += count,
            }
            if self.received == HEADER {
                self.check_header()?;
            }
        }
    }

    /// Reads into what the present message lacks, not beyond. 0 when nothing is there yet.
    fn receive_some(&mut self) -> Result<usize, Hangup> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let target = match self.received.checked_sub(HEADER) {
            None => &mut self.header[self.received..],
            Some(filled) => &mut self.body[filled..],
        };
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let outcome =
            rustix::net::recvmsg(&self.stream, &mut [IoSliceMut::new(target)], &mut control, flags);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files.extend(files);
            }
        }
        if self.files.len() > MAX_ATTACHED_FD_ENTRIES {
            let code = u32::from_ne_bytes(self.header[..4].try_into().expect("4 bytes"));
            return Err(Hangup::Message { code, what: "too many descriptors".into() });
        }
        match outcome {
            Ok(message) if message.bytes == 0 => Err(Hangup::Closed),
            Ok(message) => Ok(message.bytes),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(error) => Err(Hangup::Socket(error.into())),
        }
    }

    fn field(&self, index: usize) -> u32 {
        let bytes = &self.header[4 * index..4 * index + 4];
        u32::from_ne_bytes(bytes.try_into().expect("4 bytes"))
    }

    fn check_header(&mut self) -> Result<(), Hangup> {
        let (code, flags, size) = (self.field(0), self.field(1), self.field(2) as usize);
        let wrong = |what: String| Err(Hangup::Message { code, what });
        if FrontendReq::try_from(code).is_err() {
            return wrong("unknown request".into());
        }
        if flags & VhostUserHeaderFlag::VERSION.bits() != VERSION {
            return wrong(format!("flags {flags:#x} of another protocol version"));
        }
        if flags & VhostUserHeaderFlag::REPLY.bits() != 0 {
            return wrong("a reply to nothing".into());
        }
        if size > MAX_MSG_SIZE {
            return wrong(format!("{size} bytes of body"));
        }
        self.body = vec![0; size];
        Ok(())
    }

    fn finish(&mut self) -> Result<Message, Hangup> {
        let code = self.field(0);
        let code = FrontendReq::try_from(code)
            .map_err(|()| Hangup::Message { code, what: "unknown request".into() })?;
        let need_reply = self.field(1) & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
        self.received = 0;
        let body = std::mem::take(&mut self.body);
        let files = std::mem::take(&mut self.files);
        Ok(Message { code, need_reply, body, files })
    }

    /// Answers `request`; the parts of the body are put together.
    pub(crate) fn reply(
        &mut self,
        request: FrontendReq,
        parts: &[&[u8]],
        file: Option<OwnedFd>,
    ) -> Result<(), Hangup> {
        // One message is handled at a time, and only with nothing unsent.
        assert!(self.unsent.is_empty(), "a reply follows a sent reply");
        let size: usize = parts.iter().map(|part| part.len()).sum();
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        self.unsent.extend_from_slice(&u32::from(request).to_ne_bytes());
        self.unsent.extend_from_slice(&flags.to_ne_bytes());
        self.unsent.extend_from_slice(&(size as u32).to_ne_bytes());
        for part in parts {
            self.unsent.extend_from_slice(part);
        }
        self.unsent_file = file;
        self.flush().map(|_| ())
    }

    /// Whether a reply waits for room.
    pub(crate) fn unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends what is left of a reply; true when nothing is.
    fn flush(&mut self) -> Result<bool, Hangup> {
        while !self.unsent.is_empty() {
            match send(&self.stream, &self.unsent, self.unsent_file.as_ref()) {
                Ok(0) => return Err(Hangup::Unread),
                Ok(count) => {
                    self.unsent.drain(..count);
                    self.unsent_file = None;
                }
                Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Hangup::Closed),
                Err(error) => return Err(Hangup::Socket(error.into())),
            }
        }
        Ok(true)
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

fn send(stream: &OwnedFd, bytes: &[u8], file: Option<&OwnedFd>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = file.map(|file| [file.as_fd()]);
    if let Some(files) = &files {
        assert!(control.push(SendAncillaryMessage::ScmRights(files)), "room for one descriptor");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)
}

/// Sends a request without body to the front end; lost when there is no room, for it is a hint.
pub(crate) fn send_hint(stream: &OwnedFd, code: u32) -> Result<(), Errno> {
    let mut message = [0; HEADER];
    message[..4].copy_from_slice(&code.to_ne_bytes());
    message[4..8].copy_from_slice(&VERSION.to_ne_bytes());
    send(stream, &message, None).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use vhost::vhost_user::message::VhostUserU64;

    fn pair() -> (UnixStream, Channel) {
        let (front, back) = UnixStream::pair().unwrap();
        back.set_nonblocking(true).unwrap();
        (front, Channel::new(back.into()))
    }

    fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for field in [code, flags, body.len() as u32] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_message_in_pieces_comes_once_whole() {
        let (mut front, mut channel) = pair();
        let bytes = message(2, 0x9, &7u64.to_ne_bytes());
        for byte in &bytes[..bytes.len() - 1] {
            front.write_all(&[*byte]).unwrap();
            assert!(channel.receive().unwrap().is_none());
        }
        front.write_all(&bytes[bytes.len() - 1..]).unwrap();
        let got = channel.receive().unwrap().unwrap();
        assert_eq!((got.code, got.need_reply), (FrontendReq::SET_FEATURES, true));
        assert_eq!(got.body::<VhostUserU64>().unwrap().value, 7);
        drop(front);
        assert!(matches!(channel.receive(), Err(Hangup::Closed)));
    }

    #[test]
    fn a_front_end_that_does_not_read_is_not_read() {
        let (mut front, mut channel) = pair();
        let body = [0; MAX_MSG_SIZE];
        front.write_all(&message(1, 1, &[])).unwrap();
        let mut replies = 0;
        while channel.unsent.is_empty() {
            channel.reply(FrontendReq::GET_CONFIG, &[&body], None).unwrap();
            replies += 1;
        }
        assert!(channel.receive().unwrap().is_none());
        let mut sink = vec![0; replies * (HEADER + MAX_MSG_SIZE)];
        front.set_nonblocking(true).unwrap();
        while std::io::Read::read(&mut front, &mut sink).is_ok() {}
        assert!(channel.receive().unwrap().is_some());
    }

    proptest! {
        #[test]
        fn any_bytes_are_messages_or_a_hangup(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (mut front, mut channel) = pair();
            front.write_all(&bytes).unwrap();
            while let Ok(Some(_)) = channel.receive() {}
        }
    }
}
