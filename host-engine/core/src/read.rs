//! Reads: each block from the write buffer, or zeros, or the pool; in any order, never behind writes. Where its part of
//! the map is not in memory, a block waits for that, and nothing else does.
//!
//! A read that meets mirrored content of an unpublished write waits for that write (C23); its
//! other blocks go on.

use crate::buffer::Visible;
use crate::map::group_of;
use crate::paging::Waiter;
use crate::pool::{Lookup, Sink, Wanted};
use crate::publish::ReadKey;
use crate::request::{GuestCompletion, GuestError, TRANSFER_MAX};
use crate::state::State;
use crate::write::is_within;
use cleave_format::frame;
use cleave_format::ids::{BlockIndex, VdiskId};
use cleave_format::layout::BLOCK;
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;

/// A guest's read, until all of it is there.
pub(crate) struct ReadOperation {
    pub token: Token,
    pub vdisk: VdiskId,
    offset: u64,
    data: Buffer,
    /// Blocks that are not there yet.
    missing: u32,
    failed: Option<GuestError>,
}

impl ReadOperation {
    /// Lays a block's content into the buffer where it belongs.
    fn place(&mut self, block: BlockIndex) -> (&mut [u8], usize) {
        let start = block.0 * BLOCK as u64;
        let end = self.offset + self.data.len() as u64;
        let from = start.max(self.offset);
        let to = (start + BLOCK as u64).min(end);
        let target = (from - self.offset) as usize..(to - self.offset) as usize;
        (&mut self.data[target], (from - start) as usize)
    }
}

impl State {
    /// Takes a read of a vdisk that is served, or fails it.
    pub fn take_read(&mut self, token: Token, vdisk: VdiskId, offset: u64, length: u32) {
        let size = self.vdisks.get(&vdisk).map_or(0, |vdisk| vdisk.size);
        if !is_within(offset, u64::from(length), size, TRANSFER_MAX) {
            let result = Err(GuestError::Range);
            return self.completions.push(GuestCompletion { token, result, data: None });
        }
        let length = length as usize;
        let data = match self.buffers.iter().find(|pool| pool.capacity() >= length) {
            Some(pool) => pool.take(length),
            None => Buffer::new(length),
        };
        let first = offset / BLOCK as u64;
        let end = (offset + length as u64).div_ceil(BLOCK as u64);
        self.next_read += 1;
        let key = self.next_read;
        // One more than there are, so that it ends below and not before.
        let missing = (end - first) as u32 + 1;
        let read = ReadOperation { token, vdisk, offset, data, missing, failed: None };
        self.reads.insert(key, read);
        let mut wanted = Vec::new();
        for block in first..end {
            self.read_block(key, vdisk, BlockIndex(block), &mut wanted);
        }
        self.read_frames(wanted);
        self.begin_fetches();
        self.block_read(key, Ok(()));
    }

    /// Gives the read a block, or notes that the pool, a write, or a piece of the map must.
    pub fn read_block(
        &mut self,
        key: ReadKey,
        vdisk: VdiskId,
        block: BlockIndex,
        wanted: &mut Vec<Wanted>,
    ) {
        match self.buffer.visible(vdisk, block) {
            Visible::Unpublished(write) => {
                let write =
                    self.writes.get_mut(write).expect("its record says that it is unpublished");
                write.readers.push((key, block));
            }
            Visible::Zero => {
                self.stats.reads_buffer += 1;
                self.fill_zeros(key, block);
            }
            Visible::Frame(bytes) => {
                self.stats.reads_buffer += 1;
                // Memory is trusted as little as any other place.
                let checked = frame::check_in_log(&bytes);
                let checked = checked.map_err(|_| GuestError::Unreadable).map(|_| &bytes[..]);
                self.fill(key, block, checked);
            }
            Visible::Map => match self.wanted(vdisk, block, Sink::Read { read: key, block }) {
                Lookup::Frame(frame) => wanted.push(frame),
                Lookup::Zeros => {
                    self.stats.reads_zero += 1;
                    self.fill_zeros(key, block);
                }
                Lookup::Out => {
                    let waiter = Waiter::Read { read: key, block, unreadable: None };
                    self.wait_for_page(vdisk, group_of(block.slice()), waiter);
                }
            },
        }
    }

    /// The write that a read's block waited for is published.
    pub fn read_again(&mut self, key: ReadKey, block: BlockIndex) {
        let Some(vdisk) = self.reads.get(&key).map(|read| read.vdisk) else { return };
        let mut wanted = Vec::new();
        self.read_block(key, vdisk, block, &mut wanted);
        self.read_frames(wanted);
        self.begin_fetches();
    }

    fn fill_zeros(&mut self, key: ReadKey, block: BlockIndex) {
        if let Some(read) = self.reads.get_mut(&key) {
            read.place(block).0.fill(0);
        }
        self.block_read(key, Ok(()));
    }

    /// Gives a read the content of a block's checked frame.
    pub fn fill(&mut self, key: ReadKey, block: BlockIndex, frame: Result<&[u8], GuestError>) {
        let result = frame.and_then(|frame| self.fill_decoded(key, block, frame));
        self.block_read(key, result);
    }

    fn fill_decoded(
        &mut self,
        key: ReadKey,
        block: BlockIndex,
        frame: &[u8],
    ) -> Result<(), GuestError> {
        let read = self.reads.get_mut(&key).ok_or(GuestError::NotServed)?;
        let vdisk = read.vdisk;
        let codec = self.vdisks.get(&vdisk).ok_or(GuestError::NotServed)?.codec;
        let (target, skip) = read.place(block);
        // Whole blocks straight into place.
        if target.len() == BLOCK && self.codecs[codec].1.decode(frame, target) == Ok(BLOCK) {
            return Ok(());
        }
        let mut whole = [0; BLOCK];
        self.decode(vdisk, frame, &mut whole)?;
        let read = self.reads.get_mut(&key).ok_or(GuestError::NotServed)?;
        let (target, _) = read.place(block);
        target.copy_from_slice(&whole[skip..skip + target.len()]);
        Ok(())
    }

    /// A block of the read is there, or failed; the last one ends it.
    fn block_read(&mut self, key: ReadKey, result: Result<(), GuestError>) {
        let Some(read) = self.reads.get_mut(&key) else { return };
        if let Err(error) = result {
            read.failed.get_or_insert(error);
        }
        read.missing -= 1;
        if read.missing > 0 {
            return;
        }
        let read = self.reads.remove(&key).expect("it was there");
        let (result, data) = match read.failed {
            None => (Ok(()), Some(read.data)),
            Some(error) => (Err(error), None),
        };
        if let Some(vdisk) = self.vdisks.get_mut(&read.vdisk) {
            vdisk.stats.errors += u64::from(result.is_err());
        }
        self.leases.read(read.vdisk, GuestCompletion { token: read.token, result, data });
    }
}
