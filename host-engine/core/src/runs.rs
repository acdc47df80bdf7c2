//! Map runs: a vdisk's changed map pieces, written as frames of ordinary stripes (C21).
//!
//! A run begins at a frontier, the last commit that the map reflects, and its pieces are the map as it
//! was then, whatever is applied meanwhile (`Map::begin_run`). They go into the next stripes. The
//! commit that makes the last of them durable names them all, with the frontier; until then
//! the earlier run and all later commits count, so a run that is given up costs nothing but space.

use crate::state::State;
use bytes::{Bytes, BytesMut};
use cleave_format::address::Address;
use cleave_format::control::{MapRun, PiecePlace};
use cleave_format::footer::FOOTER_ENTRY;
use cleave_format::ids::{Position, VdiskId};
use cleave_format::map_piece::PIECE_LENGTH_MAX;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::{BTreeMap, VecDeque};

/// Changed pieces from which on a run is written in any case: all of them are named by one commit.
const PIECES_MAX: usize = 40_000;
/// Changed pieces from which on a run that goes on takes what it can of its stripes, so that the next one
/// stays within the limit.
const PIECES_HURRY: usize = 16_000;
/// What a piece costs in stripes, about, in bytes.
const PIECE_COST: u64 = 8 << 10;

/// A run that is being written.
pub(crate) struct Run {
    pub vdisk: VdiskId,
    /// Tells runs apart in stripes that outlive them.
    pub number: u64,
    frontier: Position,
    /// Pieces that are durable, or have no entries.
    done: BTreeMap<u32, Option<Address>>,
    /// Encoded, and in no stripe.
    waiting: VecDeque<(u32, Bytes)>,
    /// In stripes on their way.
    in_stripes: usize,
    /// Every piece was taken out of the map's snapshot.
    complete: bool,
    /// It does not wait for content to fill its stripe.
    pub forced: bool,
}

/// A piece in a stripe.
#[derive(Clone, Debug)]
pub(crate) struct PlannedPiece {
    pub run: u64,
    pub vdisk: VdiskId,
    pub group: u32,
    /// Its frame, with the log's checksum.
    pub frame: Bytes,
    pub offset: u32,
}

impl Run {
    /// Whether it comes to its end although nothing else needs a stripe.
    pub fn goes_on(&self) -> bool {
        self.forced || self.in_stripes > 0
    }
}

impl State {
    /// Begins a run where one is due.
    pub fn begin_run_if_due(&mut self) {
        if !std::mem::take(&mut self.run_may_be_due) {
            return;
        }
        if let Some(run) = &mut self.run {
            // Another vdisk's may have to wait for this one.
            run.forced |= self.vdisks.values().any(|vdisk| vdisk.run_wanted);
            return;
        }
        let config = &self.config.destage;
        let due = self.vdisks.iter().find(|(id, vdisk)| {
            let (commits, dirty) = (vdisk.commits.len(), self.map.dirty(**id));
            let worth_it = dirty as u64 * PIECE_COST * 4 <= vdisk.committed_bytes;
            commits > 0
                && (vdisk.run_wanted
                    || commits >= config.run_always
                    || dirty >= PIECES_MAX
                    || (commits >= config.run_after && worth_it))
        });
        let Some((vdisk, found)) = due else { return };
        let (vdisk, mut frontier) = (*vdisk, found.applied);
        // One that is wanted may have to wait for another vdisk's, which then must come to its end.
        let forced = self.vdisks.values().any(|vdisk| vdisk.run_wanted);
        if is_planted(Planted::RunAheadOfItsFrontier) {
            frontier.0 += 100;
        }
        self.map.begin_run(vdisk);
        self.stats.runs_begun += 1;
        self.run = Some(Run {
            vdisk,
            number: self.stats.runs_begun,
            frontier,
            done: BTreeMap::new(),
            waiting: VecDeque::new(),
            in_stripes: 0,
            complete: false,
            forced,
        });
        reached(Point::HostRunBegun);
    }

    /// Takes pieces of the run for a stripe of `capacity` bytes: half of it, or two thirds, which is
    /// what objects can always use of it without straddling parts.
    pub fn take_pieces(&mut self, capacity: usize) -> Vec<PlannedPiece> {
        let mut pieces = Vec::new();
        let changed = self.run.as_ref().map_or(0, |run| self.map.dirty(run.vdisk));
        let mut left = if changed > PIECES_HURRY { capacity / 3 * 2 } else { capacity / 2 };
        while left > PIECE_LENGTH_MAX + 64 {
            let Some((group, frame)) = self.next_piece() else { break };
            left = left.saturating_sub(frame.len() + FOOTER_ENTRY);
            let run = self.run.as_mut().expect("pieces come from the run");
            run.in_stripes += 1;
            let (run, vdisk) = (run.number, run.vdisk);
            pieces.push(PlannedPiece { run, vdisk, group, frame, offset: 0 });
        }
        if !pieces.is_empty() {
            reached(Point::HostRunPieces);
        }
        pieces
    }

    fn next_piece(&mut self) -> Option<(u32, Bytes)> {
        let run = self.run.as_mut()?;
        let codec = self.vdisks.get(&run.vdisk)?.codec;
        if let Some(piece) = run.waiting.pop_front() {
            return Some(piece);
        }
        loop {
            let Some((group, piece)) = self.map.next_piece(run.vdisk) else {
                run.complete = true;
                return None;
            };
            match piece {
                None => drop(run.done.insert(group, None)),
                Some(piece) => {
                    let mut frame = BytesMut::new();
                    self.codecs[codec].1.encode_object(&piece.encode(), &mut frame);
                    self.stats.pieces += 1;
                    return Some((group, frame.freeze()));
                }
            }
        }
    }

    /// Whether the run wants a stripe of its own.
    pub fn run_waits(&self) -> bool {
        self.run.as_ref().is_some_and(|run| {
            run.forced && (!run.complete || !run.waiting.is_empty() || run.in_stripes == 0)
        })
    }

    /// The stripe of these pieces was given up.
    pub fn return_pieces(&mut self, pieces: Vec<PlannedPiece>) {
        let Some(run) = &mut self.run else { return };
        for piece in pieces.into_iter().filter(|piece| piece.run == run.number) {
            run.in_stripes -= 1;
            run.waiting.push_back((piece.group, piece.frame));
        }
    }

    /// The run, if a commit with these pieces completes it.
    pub fn completed_run(&self, pieces: &[(u32, Address)]) -> Option<(VdiskId, MapRun)> {
        let run = self.run.as_ref()?;
        let complete = run.complete && run.waiting.is_empty() && run.in_stripes == pieces.len();
        if !complete {
            return None;
        }
        let mut places = run.done.clone();
        places.extend(pieces.iter().map(|(group, address)| (*group, Some(*address))));
        let place = |(group, address)| PiecePlace { group, address };
        let pieces = places.into_iter().map(place).collect();
        Some((run.vdisk, MapRun { frontier: run.frontier, pieces }))
    }

    /// These pieces are durable; `ended`: so is the run.
    pub fn pieces_committed(&mut self, run_number: u64, pieces: &[(u32, Address)], ended: bool) {
        let Some(run) = self.run.as_mut().filter(|run| run.number == run_number) else { return };
        run.in_stripes -= pieces.len();
        run.done.extend(pieces.iter().map(|(group, address)| (*group, Some(*address))));
        if !ended {
            return;
        }
        reached(Point::HostRunCommitted);
        let (id, frontier) = (run.vdisk, run.frontier);
        self.run = None;
        self.run_may_be_due = true;
        self.map.end_run(id);
        self.stats.runs += 1;
        if let Some(vdisk) = self.vdisks.get_mut(&id) {
            vdisk.run_wanted = false;
            vdisk.committed_bytes = 0;
            while vdisk.commits.front().is_some_and(|position| *position <= frontier) {
                vdisk.commits.pop_front();
            }
        }
    }
}
