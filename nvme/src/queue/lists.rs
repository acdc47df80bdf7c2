//! How data is described to the controller: PRP entries (Base 4.1.1) or SGLs (Base 4.1.2).
//!
//! A command describes at most as many pages as one list page has entries, and one more; longer
//! requests are split before. Each slot of a queue has its own list page.

use crate::dma::{DmaBuffer, Segment};
use crate::error::IoError;
use crate::spec::command::{Command, FLAG_SGL};

/// Type of an SGL descriptor in bits 7:4 of its last byte: Last Segment (Base figure 105). Data
/// Block is 0.
const LAST_SEGMENT: u64 = 3 << 60;
const DESCRIPTOR_BYTES: usize = 16;

/// List pages of the slots of a queue.
pub(super) struct Lists {
    memory: DmaBuffer,
    page: u64,
}

/// What the controller takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SglSupport {
    None,
    Bytes,
    Dwords,
}

/// The part of `segments` from `skip`, `length` bytes long, piece by piece.
fn pieces(segments: &[Segment], skip: u64, length: u32) -> impl Iterator<Item = (u64, u64)> {
    let (mut skip, mut left) = (skip, u64::from(length));
    segments.iter().filter_map(move |segment| {
        let whole = u64::from(segment.length);
        let from = skip.min(whole);
        skip -= from;
        let take = (whole - from).min(left);
        left -= take;
        (take > 0).then_some((segment.address + from, take))
    })
}

impl Lists {
    pub(super) fn bytes(slots: u16, page: u64) -> usize {
        usize::from(slots) * page as usize
    }

    pub(super) fn new(memory: DmaBuffer, page: u64) -> Lists {
        Lists { memory, page }
    }

    pub(super) fn into_memory(self) -> DmaBuffer {
        self.memory
    }

    fn place(&self, slot: u16) -> usize {
        usize::from(slot) * self.page as usize
    }

    /// Most bytes that one command can describe from any first address.
    pub(super) fn transfer_max(page: u64) -> u64 {
        page / 8 * page
    }

    /// Puts the bytes into the slot's page and points the command to it.
    pub(super) fn inline(&self, slot: u16, bytes: &[u8], command: &mut Command) {
        self.memory.write(self.place(slot), bytes);
        command.data[0] = (self.memory.address() + self.place(slot) as u64).into();
    }

    /// Points the command to a part of the segments.
    pub(super) fn describe(
        &self,
        slot: u16,
        segments: &[Segment],
        skip: u64,
        length: u32,
        sgl: SglSupport,
        command: &mut Command,
    ) -> Result<(), IoError> {
        match self.pages(slot, segments, skip, length) {
            Some(pointers) => command.data = pointers.map(Into::into),
            None => {
                let descriptor =
                    self.scatter(slot, segments, skip, length, sgl).ok_or(IoError::Memory)?;
                command.data = descriptor.map(Into::into);
                command.flags |= FLAG_SGL;
            }
        }
        Ok(())
    }

    /// PRP entries. `None` when the pieces do not meet at page boundaries.
    fn pages(&self, slot: u16, segments: &[Segment], skip: u64, length: u32) -> Option<[u64; 2]> {
        let list = self.place(slot);
        let most = self.page / 8 + 1;
        let (mut first, mut second, mut count) = (0, 0, 0);
        let mut end = 0;
        for (address, bytes) in pieces(segments, skip, length) {
            let joined = count > 0;
            let unaligned = address % self.page != 0 || end % self.page != 0;
            if (joined && unaligned) || address % 4 != 0 {
                return None;
            }
            end = address + bytes;
            let mut at = address;
            while at < end {
                match count {
                    0 => first = at,
                    _ if count == most => return None,
                    _ => {
                        if count == 1 {
                            second = at;
                        }
                        self.memory.write_u64(list + 8 * (count as usize - 1), at);
                    }
                }
                count += 1;
                at = (at / self.page + 1) * self.page;
            }
        }
        if count > 2 {
            second = self.memory.address() + list as u64;
        }
        Some([first, second])
    }

    /// An SGL descriptor. `None` when the controller does not take it, or not so many.
    fn scatter(
        &self,
        slot: u16,
        segments: &[Segment],
        skip: u64,
        length: u32,
        sgl: SglSupport,
    ) -> Option<[u64; 2]> {
        let list = self.place(slot);
        let (mut only, mut count) = ([0, 0], 0);
        for (address, bytes) in pieces(segments, skip, length) {
            let unaligned = (address | bytes) % 4 != 0;
            let full = (count + 1) * DESCRIPTOR_BYTES > self.page as usize;
            if sgl == SglSupport::None || (sgl == SglSupport::Dwords && unaligned) || full {
                return None;
            }
            only = [address, bytes];
            self.memory.write_u64(list + DESCRIPTOR_BYTES * count, address);
            self.memory.write_u64(list + DESCRIPTOR_BYTES * count + 8, bytes);
            count += 1;
        }
        if count == 1 {
            return Some(only);
        }
        let bytes = (count * DESCRIPTOR_BYTES) as u64;
        Some([self.memory.address() + list as u64, bytes | LAST_SEGMENT])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaPool, DmaSpace, PageKind};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn lists(page: u64) -> Lists {
        let pool = DmaPool::new(Arc::new(DmaSpace::default()), &[PageKind::Normal], None);
        Lists::new(pool.allocate(Lists::bytes(2, page)).unwrap(), page)
    }

    /// The addresses that a controller finds, with their lengths, by the rules of Base 4.1.1.
    fn follow(lists: &Lists, pointers: [u64; 2], length: u32) -> Vec<(u64, u64)> {
        let page = lists.page;
        let mut left = u64::from(length);
        let mut found = Vec::new();
        let mut take = |address: u64, left: &mut u64| {
            let bytes = (page - address % page).min(*left);
            *left -= bytes;
            found.push((address, bytes));
        };
        take(pointers[0], &mut left);
        if left > 0 && left <= page {
            take(pointers[1], &mut left);
        } else {
            let mut at = pointers[1].wrapping_sub(lists.memory.address()) as usize;
            while left > 0 {
                take(lists.memory.read_u64(at), &mut left);
                at += 8;
            }
        }
        found
    }

    #[test]
    fn what_does_not_meet_at_pages_needs_an_sgl() {
        let lists = lists(4096);
        let segments = [
            Segment { address: 0x1_0200, length: 512 },
            Segment { address: 0x2_0000, length: 512 },
        ];
        let mut command = Command::default();
        let none = lists.describe(0, &segments, 0, 1024, SglSupport::None, &mut command);
        assert_eq!(none, Err(IoError::Memory));
        lists.describe(1, &segments, 0, 1024, SglSupport::Dwords, &mut command).unwrap();
        assert_eq!(command.flags, FLAG_SGL);
        assert_eq!(command.data[0].get(), lists.memory.address() + 4096);
        assert_eq!(command.data[1].get(), 32 | 3 << 60);
        assert_eq!(lists.memory.read_u64(4096), 0x1_0200);
        assert_eq!(lists.memory.read_u64(4096 + 24), 512);
        let odd = [Segment { address: 0x1_0201, length: 512 }];
        let mut command = Command::default();
        let none = lists.describe(0, &odd, 0, 512, SglSupport::Dwords, &mut command);
        assert_eq!(none, Err(IoError::Memory));
        lists.describe(0, &odd, 0, 512, SglSupport::Bytes, &mut command).unwrap();
        assert_eq!(command.data.map(|word| word.get()), [0x1_0201, 512]);
    }

    proptest! {
        #[test]
        fn a_controller_finds_the_same_bytes(
            lengths in proptest::collection::vec(1u32..40, 1..6),
            begin in 0u64..8,
            from in 0u32..1000,
            share in 1u32..1000,
            page in prop_oneof![Just(4096u64), Just(8192)],
        ) {
            let lists = lists(page);
            // The first begins anywhere in its page, the others are whole pages.
            let mut segments = Vec::new();
            for (index, pages) in lengths.iter().enumerate() {
                let address = 0x7000_0000 + index as u64 * 0x100_0000;
                let offset = if index == 0 { begin * 512 } else { 0 };
                let length = *pages * page as u32 - offset as u32;
                segments.push(Segment { address: address + offset, length });
            }
            let total: u32 = segments.iter().map(|segment| segment.length).sum();
            let skip = total * from / 1000 / 512 * 512;
            let length = ((total - skip) / 512 * share / 1000 + 1) * 512;
            let length = length.min(total - skip);
            let want: Vec<u64> = pieces(&segments, skip.into(), length)
                .flat_map(|(address, bytes)| (address..address + bytes).step_by(512))
                .collect();
            let pointers = lists.pages(1, &segments, skip.into(), length);
            let found: Vec<u64> = follow(&lists, pointers.expect("pages meet"), length)
                .into_iter()
                .flat_map(|(address, bytes)| (address..address + bytes).step_by(512))
                .collect();
            prop_assert_eq!(found, want);
        }
    }
}
