//! A message as it came off a link: the chunks in which it arrived, not yet put together.
//!
//! Whoever consumes a message copies its payload once, straight to where it stays (a log chunk, a
//! drive's buffer), and reads short headers through [`Message::take`].

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// A received message, consumed from its front.
#[derive(Clone, Debug, Default)]
pub struct Message {
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl Message {
    /// An empty message.
    pub fn new() -> Message {
        Message::default()
    }

    /// Appends a chunk; empty ones are dropped.
    pub fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.length += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Bytes not yet taken.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether everything was taken.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Takes the next `count` bytes as one contiguous piece: without a copy where they lie in one
    /// chunk. `None` (and nothing taken) when fewer are left.
    pub fn take(&mut self, count: usize) -> Option<Bytes> {
        if count > self.length {
            return None;
        }
        if count == 0 {
            return Some(Bytes::new());
        }
        let front = self.chunks.front_mut().expect("length counts the chunks");
        if front.len() >= count {
            let piece = front.split_to(count);
            if front.is_empty() {
                self.chunks.pop_front();
            }
            self.length -= count;
            return Some(piece);
        }
        let mut joined = vec![0; count];
        self.copy_to(&mut joined);
        Some(Bytes::from(joined))
    }

    /// Takes all that is left as one contiguous piece.
    pub fn take_rest(&mut self) -> Bytes {
        self.take(self.length).expect("length is what is left")
    }

    /// Takes `target.len()` bytes into `target`. False (and nothing taken) when fewer are left.
    pub fn copy_to(&mut self, target: &mut [u8]) -> bool {
        if target.len() > self.length {
            return false;
        }
        let mut filled = 0;
        while filled < target.len() {
            let front = self.chunks.front_mut().expect("length counts the chunks");
            let count = front.len().min(target.len() - filled);
            target[filled..filled + count].copy_from_slice(&front[..count]);
            if count == front.len() {
                self.chunks.pop_front();
            } else {
                let _ = front.split_to(count);
            }
            filled += count;
        }
        self.length -= filled;
        true
    }

    /// Takes the next `count` bytes to the end of `target`, which is not filled with anything else
    /// before. False (and nothing taken) when fewer are left.
    pub fn append_to(&mut self, count: usize, target: &mut BytesMut) -> bool {
        if count > self.length {
            return false;
        }
        let mut missing = count;
        while missing > 0 {
            let front = self.chunks.front_mut().expect("length counts the chunks");
            if front.len() <= missing {
                target.extend_from_slice(front);
                missing -= front.len();
                self.chunks.pop_front();
            } else {
                target.extend_from_slice(&front[..missing]);
                let _ = front.split_to(missing);
                missing = 0;
            }
        }
        self.length -= count;
        true
    }
}

impl From<Bytes> for Message {
    fn from(chunk: Bytes) -> Message {
        let mut message = Message::new();
        message.push(chunk);
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..10),
            cuts in proptest::collection::vec(0usize..50, 0..20),
        ) {
            let whole: Vec<u8> = chunks.concat();
            let mut message = Message::new();
            for chunk in &chunks {
                message.push(Bytes::copy_from_slice(chunk));
            }
            let mut got = Vec::new();
            for (index, cut) in cuts.iter().enumerate() {
                if index % 3 == 2 {
                    let mut piece = BytesMut::new();
                    if message.append_to(*cut, &mut piece) { got.extend_from_slice(&piece); }
                } else if index % 3 == 0 {
                    if let Some(piece) = message.take(*cut) { got.extend_from_slice(&piece); }
                } else {
                    let mut piece = vec![0; *cut];
                    if message.copy_to(&mut piece) { got.extend_from_slice(&piece); }
                }
                prop_assert_eq!(message.len() + got.len(), whole.len());
            }
            got.extend_from_slice(&message.take_rest());
            prop_assert_eq!(got, whole);
        }
    }
}
