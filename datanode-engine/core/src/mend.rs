//! Rot in the log's memory: it is looked for, and mended from the other controller's copy.
//!
//! While the mirror runs, each controller looks through the records of its log, a little at a time, and before it gives
//! a record to a host that opens a vdisk. One that fails a check is asked of the peer, which answers
//! with what it holds; the better copy stays. A record that is damaged in both keeps what can be read of it: who opens
//! the vdisk serves everything but the blocks whose frames are damaged. One that is unreadable in both, or in the only
//! log that there is when it is copied, is [given up](crate::log::Log::give_up).
//!
//! A control record is checked whenever it is used: before its effects, before it is forwarded, copied, or written to the
//! vault. Its effects, and all after them, wait until it is mended. Where no sound copy is left the controller ends
//! rather than go on without it, or by what it is not; another one copies from the peer, if that has it.
//!
//! Nothing of this touches records that are not mirrored yet, nor what is released. A crash loses nothing but the
//! knowledge of what was found, which is found again.

use crate::hosts::ParkedFetch;
use crate::log::{LogEntryKind, Rotted, Soundness};
use crate::notices::Notice;
use crate::state::State;
use bytes::Bytes;
use cleave_format::ids::Position;
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::PeerMessage;
use std::collections::BTreeSet;

/// Bytes of records that are looked at in one go: a log of 256 MiB in some minutes.
const LOOK_BYTES: usize = 1 << 20;
/// Entries that are looked at in one go.
const LOOK_ENTRIES: usize = 1024;
/// Records that are asked for at a time.
const ASKED_MAX: usize = 64;

/// What was found, and what is done about it.
#[derive(Default)]
pub(crate) struct Mending {
    /// Where the look goes on.
    next: Position,
    /// Asked of the peer on the present connection.
    asked: BTreeSet<Position>,
    /// Damaged here, and no better there.
    hopeless: BTreeSet<Position>,
    /// Hosts' fetches that wait for an answer.
    pub parked: Vec<ParkedFetch>,
}

impl Mending {
    /// Whether a record is damaged and no better copy can be had.
    pub fn is_hopeless(&self, position: Position) -> bool {
        self.hopeless.contains(&position) || is_planted(Planted::LeaveRot)
    }
}

impl State {
    /// Looks at some of the log's records. Called now and then.
    pub fn look_for_rot(&mut self) {
        if !self.is_joined() || self.stopping {
            return;
        }
        let Some(held) = &self.held else { return };
        let end = Position(self.mirror.mirrored + 1);
        self.mending.hopeless.retain(|position| held.log.entry(*position).is_some());
        let (mut bytes, mut damaged) = (0, Vec::new());
        let mut from = self.mending.next;
        for _ in 0..LOOK_ENTRIES {
            let Some((position, entry)) = held.log.next_entry(from, end) else {
                from = Position(0);
                break;
            };
            from = Position(position.0 + 1);
            bytes += entry.bytes.len();
            if entry.soundness(position) != Soundness::Sound {
                damaged.push(position);
            }
            if bytes >= LOOK_BYTES {
                break;
            }
        }
        self.mending.next = from;
        for position in damaged {
            self.mend(position);
        }
    }

    /// Whether the entry of a position may be used, a record be given to a host: it is sound, or no better copy can be had. Asks the
    /// peer for one otherwise.
    pub fn mend(&mut self, position: Position) -> bool {
        let mending = &mut self.mending;
        if mending.hopeless.contains(&position) || is_planted(Planted::LeaveRot) {
            return true;
        }
        if mending.asked.contains(&position) || mending.asked.len() >= ASKED_MAX {
            return false;
        }
        if self.is_joined() {
            tracing::error!(
                "the entry at {position} rotted in memory; asking the peer for its copy"
            );
            self.counters.rotted += 1;
            self.notices.tell(Notice::Rotted { position });
            self.mending.asked.insert(position);
            // A closed connection is reported by its event.
            let _ = self.send_peer(&PeerMessage::Want { position }, &[]);
        }
        false
    }

    /// As [`mend`](State::mend), a control record whose effects are due: what was hopeless of another peer is asked of
    /// this one.
    pub fn mend_control(&mut self, rotted: Rotted) {
        if self.is_alone() {
            // What is on drives was sound when it was written.
            return self.lose_control(rotted);
        }
        self.mending.hopeless.remove(&rotted.0);
        self.mend(rotted.0);
    }

    /// The peer asks for an entry.
    pub fn lend(&mut self, position: Position) {
        let entry = self.held.as_ref().and_then(|held| held.log.entry(position));
        let payload: Vec<Bytes> = entry.map(|entry| entry.bytes.clone()).into_iter().collect();
        let check = entry.and_then(|entry| match entry.kind {
            LogEntryKind::Control { check } => Some(check),
            LogEntryKind::Record(..) => None,
        });
        let _ = self.send_peer(&PeerMessage::Lent { position, check }, &payload);
    }

    /// The peer's copy of an entry.
    pub fn lent(
        &mut self,
        position: Position,
        check: Option<u32>,
        mut payload: Message,
    ) -> Result<(), String> {
        if !self.mending.asked.remove(&position) {
            return Err("the peer lent what nobody wanted".to_owned());
        }
        let copy = payload.take_rest();
        let Some(held) = &mut self.held else { return Ok(()) };
        let mended = match check {
            Some(check) => held.log.mend_control(position, &copy, check),
            None => held.log.mend(position, &copy),
        };
        if mended {
            self.counters.mended += 1;
            self.notices.tell(Notice::Mended { position });
            tracing::warn!("the entry at {position} was mended from the peer's copy");
        }
        let entry = held.log.entry(position);
        let is_control = entry.is_some_and(|entry| !matches!(entry.kind, LogEntryKind::Record(..)));
        match entry.map(|entry| entry.soundness(position)) {
            // Its effects, and those of what comes after it, waited.
            Some(Soundness::Sound) if is_control => {
                self.advance_effects(Position(self.mirror.mirrored));
                return Ok(());
            }
            // Released meanwhile, or mended.
            None | Some(Soundness::Sound) => return Ok(()),
            // The peer let it go: both catalogs have it, and it is about to leave here too.
            Some(_) if is_control && copy.is_empty() => return Ok(()),
            // Nothing waits for what had its effects; who copies this log finds it.
            Some(_) if is_control && position.0 <= self.mirror.effects => {}
            Some(_) if is_control => {
                self.lose_control(Rotted(position));
                return Ok(());
            }
            Some(Soundness::Damaged) => {
                tracing::error!("both copies of the record at {position} are damaged");
                self.notices.tell(Notice::RecordLost { position, vdisk: None });
            }
            Some(Soundness::Unreadable) => self.give_up(position),
        }
        self.mending.hopeless.insert(position);
        Ok(())
    }

    /// No sound copy of a control record can be had here: nothing can be made of the log after it.
    pub fn lose_control(&mut self, rotted: Rotted) {
        self.fail(format!(
            "{rotted}, and no sound copy of it can be had: this controller ends rather than apply what it is not; started again, \
             it copies the log of the other controller, if that has it whole"
        ));
    }

    /// No better copy of an unreadable entry is left.
    pub fn give_up(&mut self, position: Position) {
        let Some(held) = &mut self.held else { return };
        if held.log.record(position).is_none() {
            return self.lose_control(Rotted(position));
        }
        if let Some(identity) = held.log.give_up(position) {
            self.counters.given_up += 1;
            let (vdisk, slice, version) = (identity.vdisk, identity.slice, identity.version);
            self.notices.tell(Notice::RecordLost { position, vdisk: Some(vdisk) });
            tracing::error!(
                %vdisk, slice = slice.0, epoch = version.epoch.0, sequence = version.sequence.0,
                "a record of the log rotted and nothing tells its blocks any more; unless its host destages it, reads of the slice's \
                 blocks fail until they are written again"
            );
        }
    }

    /// Gives up what is unreadable in a part of the log that is the only one; a control record ends the controller.
    pub fn give_up_unreadable(&mut self, from: Position) {
        let mut at = from;
        while let Some(held) = &self.held
            && let Some((position, _)) = held.log.next_entry(at, held.log.next())
        {
            at = Position(position.0 + 1);
            if !held.log.is_readable(position) {
                self.give_up(position);
            }
        }
    }

    /// The connection to the peer is another one: what was asked is asked again.
    pub fn forget_asked(&mut self) {
        self.mending.asked.clear();
    }

    /// Goes on with fetches that waited for records to be mended. True when there were any.
    pub fn take_parked_fetches(&mut self) -> bool {
        if self.mending.parked.is_empty() || !self.is_joined() {
            return false;
        }
        let asked = &self.mending.asked;
        let ready = |fetch: &mut ParkedFetch| !asked.contains(&fetch.position);
        let ready: Vec<ParkedFetch> = self.mending.parked.extract_if(.., ready).collect();
        let any = !ready.is_empty();
        ready.into_iter().for_each(|fetch| self.fetch_again(fetch));
        any
    }
}
