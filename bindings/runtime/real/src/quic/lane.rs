//! Lanes: messages cut out of, and put into, the long streams of a connection.
//!
//! A message on the wire is its length (u32, little-endian) and its body. A lane is one
//! unidirectional stream each way, the N-th that a side opens being lane N. Neither end of a
//! stream ever comes while the connection lives.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cleave_runtime::links::MESSAGE_LENGTH_MAX;
use cleave_runtime::message::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const HEADER: usize = 4;

/// Bytes of messages that were sent and that the peer's system does not have whole yet.
pub(super) type Unacknowledged = Arc<AtomicUsize>;

/// The last chunk of a message. QUIC keeps what it was given until the peer has acknowledged it and
/// all before it: when the last chunk goes, so has the message. QUIC itself does not tell.
struct Tail {
    bytes: Bytes,
    /// Bytes of the whole message, header included.
    length: usize,
    unacknowledged: Unacknowledged,
}

impl AsRef<[u8]> for Tail {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.unacknowledged.fetch_sub(self.length, Ordering::Relaxed);
    }
}

/// Bytes from which headers are cut, so that not each of them is an allocation.
const HEADER_ARENA: usize = 1024;

/// Chunks handed to the stream at a time, so that lanes take turns.
pub(super) const CHUNKS_PER_WRITE: usize = 16;

/// A peer announced a message longer than any may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong(pub(super) usize);

/// Messages that wait for the stream.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    chunks: VecDeque<Bytes>,
    arena: BytesMut,
    unacknowledged: Unacknowledged,
}

impl Outgoing {
    /// An empty lane of a connection, whose lanes count together.
    pub(super) fn new(unacknowledged: &Unacknowledged) -> Outgoing {
        Outgoing { unacknowledged: Arc::clone(unacknowledged), ..Outgoing::default() }
    }

    /// Queues a message, whose length was checked; returns the bytes that this adds to the queue.
    pub(super) fn push(&mut self, parts: &[Bytes]) -> usize {
        let length: usize = parts.iter().map(Bytes::len).sum();
        if self.arena.capacity() - self.arena.len() < HEADER {
            self.arena = BytesMut::with_capacity(HEADER_ARENA);
        }
        self.arena.put_u32_le(u32::try_from(length).expect("message length was checked"));
        self.chunks.push_back(self.arena.split().freeze());
        self.chunks.extend(parts.iter().filter(|part| !part.is_empty()).cloned());
        let length = HEADER + length;
        self.unacknowledged.fetch_add(length, Ordering::Relaxed);
        let bytes = self.chunks.pop_back().expect("there is a header at least");
        let unacknowledged = Arc::clone(&self.unacknowledged);
        self.chunks.push_back(Bytes::from_owner(Tail { bytes, length, unacknowledged }));
        length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The first chunks. Whoever writes them takes what was written off their fronts.
    pub(super) fn first(&mut self) -> &mut [Bytes] {
        let (first, _) = self.chunks.as_mut_slices();
        let count = first.len().min(CHUNKS_PER_WRITE);
        &mut first[..count]
    }

    /// Drops chunks that were written whole.
    pub(super) fn written(&mut self, chunks: usize) {
        self.chunks.drain(..chunks);
    }

    pub(super) fn clear(&mut self) {
        self.chunks.clear();
    }
}

/// A message on its way in.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    header: [u8; HEADER],
    header_length: usize,
    /// Bytes of the body still to come, once the header is whole.
    missing: Option<usize>,
    message: Message,
}

impl Incoming {
    /// Takes the next bytes of the stream; `each` gets the messages that they complete.
    pub(super) fn feed(
        &mut self,
        mut chunk: Bytes,
        mut each: impl FnMut(Message),
    ) -> Result<(), TooLong> {
        loop {
            let missing = match self.missing {
                Some(missing) => missing,
                None => {
                    let count = (HEADER - self.header_length).min(chunk.len());
                    let end = self.header_length + count;
                    chunk.copy_to_slice(&mut self.header[self.header_length..end]);
                    self.header_length = end;
                    if end < HEADER {
                        return Ok(());
                    }
                    let length = u32::from_le_bytes(self.header) as usize;
                    if length > MESSAGE_LENGTH_MAX {
                        return Err(TooLong(length));
                    }
                    length
                }
            };
            let count = missing.min(chunk.len());
            self.message.push(chunk.split_to(count));
            if count < missing {
                self.missing = Some(missing - count);
                return Ok(());
            }
            self.missing = None;
            self.header_length = 0;
            each(std::mem::take(&mut self.message));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a queue's bytes, written `step` chunks at a time.
    fn drain(lane: &mut Outgoing) -> Vec<u8> {
        let mut stream = Vec::new();
        while !lane.is_empty() {
            let chunks = lane.first();
            let count = chunks.len();
            chunks.iter().for_each(|chunk| stream.extend_from_slice(chunk));
            lane.written(count);
        }
        stream
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_the_stream_is_cut() {
        let bodies: Vec<Vec<u8>> =
            [0usize, 1, 3, 0, 4, 5, 300, 0, 70_000].map(|length| vec![length as u8; length]).into();
        let mut out = Outgoing::default();
        let mut queued = 0;
        for body in &bodies {
            let cut = body.len() / 3;
            let parts = [&body[..cut], &[], &body[cut..]].map(Bytes::copy_from_slice);
            queued += out.push(&parts);
        }
        assert_eq!(out.unacknowledged.load(Ordering::Relaxed), queued);
        let stream = drain(&mut out);
        assert_eq!(stream.len(), queued);
        assert_eq!(out.unacknowledged.load(Ordering::Relaxed), 0, "nobody keeps any of it");
        for step in [1, 2, 3, 4, 5, 7, 64, 100_000] {
            let mut lane = Incoming::default();
            let mut got = Vec::new();
            for piece in stream.chunks(step) {
                let piece = Bytes::copy_from_slice(piece);
                lane.feed(piece, |mut message| got.push(message.take_rest().to_vec())).unwrap();
            }
            assert_eq!(got, bodies, "{step}");
        }
    }

    #[test]
    fn a_message_counts_until_its_last_byte_is_let_go() {
        let unacknowledged = Unacknowledged::default();
        let mut lanes = [Outgoing::new(&unacknowledged), Outgoing::new(&unacknowledged)];
        let count = || unacknowledged.load(Ordering::Relaxed);
        let part = Bytes::from_static(&[1; 100]);
        lanes[0].push(&[part.clone(), part.clone()]);
        lanes[1].push(&[]);
        assert_eq!(count(), 204 + 4);
        let mut kept: VecDeque<Bytes> = lanes[0].first().iter().cloned().collect();
        lanes[0].written(3);
        // The stream cuts chunks as packets need them.
        let mut last = kept.pop_back().unwrap();
        let end = last.split_off(40);
        kept.clear();
        drop(last);
        assert_eq!(count(), 204 + 4);
        drop(end);
        assert_eq!(count(), 4);
        lanes[1].clear();
        assert_eq!(count(), 0);
    }

    #[test]
    fn absurd_lengths_are_refused_before_their_body() {
        let too_long = MESSAGE_LENGTH_MAX + 1;
        let header = Bytes::copy_from_slice(&(too_long as u32).to_le_bytes());
        let outcome = Incoming::default().feed(header, |_| unreachable!("no message"));
        assert_eq!(outcome, Err(TooLong(too_long)));
    }
}
