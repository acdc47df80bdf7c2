//! The requests that the engine holds, by tag.
//!
//! A slot is vacant, live, or abandoned: its connection went while the engine had it. An abandoned
//! slot keeps its place until the engine has answered all of it, and as long as there is one, no
//! request of a new connection is taken: what the engine still does of the old one comes before
//! (C24: else an old write could land after a newer one).

use crate::blk::Status;
use crate::chain::Chain;
use crate::request::Tag;

/// A request in the engine's hands.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    life: u64,
    state: State,
    pub(crate) ring: u16,
    pub(crate) head: u16,
    pub(crate) parts_left: u32,
    /// The first failure of any part.
    pub(crate) failure: Option<Status>,
    /// Bytes of a read; 0 for everything else.
    pub(crate) read_bytes: u64,
    /// Bytes of a write; 0 for everything else.
    pub(crate) write_bytes: u64,
    pub(crate) chain: Chain,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Vacant,
    Live,
    Abandoned,
}

/// What an answer is for.
pub(crate) enum Found<'a> {
    /// A request of the present connection.
    Live(&'a mut Slot),
    /// One of an earlier connection: nobody waits for it.
    Stale,
}

/// All slots of a vdisk.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    vacant: Vec<u16>,
    lives: u64,
    abandoned: usize,
    write_bytes: u64,
}

impl Slots {
    /// Requests that the engine holds, those of earlier connections included.
    pub(crate) fn in_use(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// Requests of earlier connections that the engine still holds.
    pub(crate) fn abandoned(&self) -> usize {
        self.abandoned
    }

    /// Bytes of write data that the engine holds.
    pub(crate) fn write_bytes(&self) -> u64 {
        self.write_bytes
    }

    /// A live slot with an old chain in it.
    pub(crate) fn begin(&mut self) -> u16 {
        let index = self.vacant.pop().unwrap_or_else(|| {
            let index = u16::try_from(self.slots.len()).expect("the configuration bounds them");
            self.slots.push(Slot::default());
            index
        });
        self.lives += 1;
        let slot = &mut self.slots[usize::from(index)];
        slot.life = self.lives;
        slot.state = State::Live;
        (slot.parts_left, slot.failure, slot.read_bytes, slot.write_bytes) = (0, None, 0, 0);
        index
    }

    pub(crate) fn get(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    /// Counts a live slot's write data.
    pub(crate) fn hold_write(&mut self, index: u16, bytes: u64) {
        self.slots[usize::from(index)].write_bytes = bytes;
        self.write_bytes += bytes;
    }

    /// The tag of a part of a live slot, which the engine is to answer.
    pub(crate) fn issue(&mut self, index: u16, part: u32) -> Tag {
        let slot = &mut self.slots[usize::from(index)];
        slot.parts_left += 1;
        Tag::new(index, part, slot.life)
    }

    /// Whose request a tag names, without answering it.
    ///
    /// # Panics
    /// When the tag was answered before: the engine answers once.
    pub(crate) fn find(&mut self, tag: Tag) -> Found<'_> {
        let known = self.slots.get_mut(usize::from(tag.slot()));
        let slot = known.filter(|slot| slot.life == tag.life() && slot.state != State::Vacant);
        let slot = slot.expect("a request is answered once, to the vdisk it came from");
        if slot.state == State::Abandoned { Found::Stale } else { Found::Live(slot) }
    }

    /// An abandoned request's part was answered.
    pub(crate) fn drop_stale(&mut self, tag: Tag) {
        let slot = &mut self.slots[usize::from(tag.slot())];
        slot.parts_left -= 1;
        if slot.parts_left == 0 {
            self.abandoned -= 1;
            self.end(tag.slot());
        }
    }

    /// Makes a slot vacant.
    pub(crate) fn end(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.state = State::Vacant;
        self.write_bytes -= slot.write_bytes;
        self.vacant.push(index);
    }

    /// Makes a slot vacant, unless the engine has a part of it.
    pub(crate) fn end_unless_issued(&mut self, index: u16) {
        if self.slots[usize::from(index)].parts_left == 0 {
            self.end(index);
        }
    }

    /// The connection is gone.
    pub(crate) fn abandon(&mut self) {
        for slot in &mut self.slots {
            if slot.state == State::Live {
                slot.state = State::Abandoned;
                self.abandoned += 1;
            }
        }
    }
}
