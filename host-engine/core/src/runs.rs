//! Map runs: a vdisk's changed map pieces, written as frames of ordinary stripes (C21).
//!
//! A run begins at a frontier, the last commit that the map reflects, and its pieces are the map as it
//! was then, whatever is applied meanwhile (`Map::begin_run`). They go into the next stripes. The
//! commit that makes the last of them durable names them all, with the frontier; until then
//! the earlier run and all later commits count, so a run that is given up costs nothing but space. With
//! the same commit the vdisk leaves the stripes that nothing of it names any more (C21, `liveness`): a
//! run is begun by the number of commits, or for the space that it frees.

use crate::map::changed_max;
use crate::state::{State, Vdisk};
use bytes::{Bytes, BytesMut};
use cleave_format::address::Address;
use cleave_format::control::{MapRun, PiecePlace};
use cleave_format::footer::FOOTER_ENTRY;
use cleave_format::ids::{Position, VdiskId};
use cleave_format::layout::SHARD;
use cleave_format::map_piece::PIECE_LENGTH_MAX;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::time::Moment;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Changed pieces from which on a run is written in any case: all of them are named by one commit.
const PIECES_MAX: usize = 40_000;
/// Changed pieces from which on a run that goes on takes what it can of its stripes, so that the next one
/// stays within the limit.
const PIECES_HURRY: usize = 16_000;
/// What a piece costs in stripes, about, in bytes.
const PIECE_COST: u64 = 8 << 10;
/// Dead stripes from which on a run may be begun for their space alone, with the next content.
const DEAD_MIN: u64 = 4;

/// How urgently a run is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Its pieces go into stripes that are written anyway.
    WithContent,
    /// It writes a stripe for itself.
    Now,
}

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
    began: Moment,
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
            // Another vdisk's may have to wait for this one; and content to fill its stripe may not come.
            let waited = self.now.since(run.began) >= self.config.destage.age_after;
            run.forced |= waited || self.vdisks.values().any(|vdisk| vdisk.run_wanted);
            return;
        }
        let due = self.vdisks.iter().find_map(|(id, vdisk)| Some((*id, self.run_due(*id, vdisk)?)));
        let Some((vdisk, due)) = due else { return };
        let mut frontier = self.vdisks[&vdisk].applied;
        // One that is wanted may have to wait for another vdisk's, which then must come to its end.
        let forced = due == Due::Now || self.vdisks.values().any(|vdisk| vdisk.run_wanted);
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
            began: self.now,
        });
        reached(Point::HostRunBegun);
    }

    /// Whether a run of the vdisk is due, and how urgently.
    fn run_due(&self, id: VdiskId, vdisk: &Vdisk) -> Option<Due> {
        let config = &self.config.destage;
        let (commits, dirty, dead) =
            (vdisk.commits.len(), self.map.dirty(id), self.map.dead(id) as u64);
        let cost = dirty as u64 * PIECE_COST;
        let worth_it = cost * 4 <= vdisk.committed_bytes;
        let by_commits = commits > 0
            && (vdisk.run_wanted
                || commits >= config.run_always
                || dirty >= PIECES_MAX.min(changed_max(self.config.map))
                || (commits >= config.run_after && worth_it));
        let stripe = u64::from(self.data_shards.max(1)) * SHARD as u64;
        let space = dead * stripe;
        // Written by itself, it takes whole stripes.
        let whole = match self.map.mapped(id) {
            0 => 0,
            _ => cost.next_multiple_of(stripe),
        };
        let waited = vdisk.dead_since.map_or(Duration::ZERO, |since| self.now.since(since));
        let aged = waited >= config.age_after && space > whole;
        // With a pool that is full any space is worth it.
        let needed = self.stats.shortage.is_some();
        if dead > 0 && (aged || needed) {
            Some(Due::Now)
        } else if by_commits || (dead >= DEAD_MIN && space >= 4 * cost) {
            Some(Due::WithContent)
        } else {
            None
        }
    }

    /// Looks at how long stripes are dead: a run may be due by it.
    pub fn look_at_dead_stripes(&mut self) {
        for (id, vdisk) in &mut self.vdisks {
            if self.map.dead(*id) == 0 {
                vdisk.dead_since = None;
            } else {
                vdisk.dead_since.get_or_insert(self.now);
                self.run_may_be_due = true;
            }
        }
        self.run_may_be_due |= self.run.is_some();
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

    /// Whether the run has a piece that is in no stripe.
    pub fn draw_piece(&mut self) -> bool {
        let next = self.next_piece();
        let any = next.is_some();
        if let (Some(run), Some(piece)) = (&mut self.run, next) {
            run.waiting.push_front(piece);
        }
        any
    }

    /// Gives the run up if the vdisk would leave no stripe with it: what it has written counts as changed again.
    /// True when it did.
    pub fn give_up_useless_run(&mut self) -> bool {
        let useless = |run: &mut Run| run.in_stripes == 0 && !self.map.could_leave(run.vdisk);
        let Some(run) = self.run.take_if(useless) else { return false };
        self.map.end_run(run.vdisk);
        let written = run.done.into_keys().chain(run.waiting.into_iter().map(|(group, _)| group));
        written.for_each(|group| self.map.mark_dirty(run.vdisk, group));
        self.run_may_be_due = true;
        true
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
    pub fn completed_run(&mut self, pieces: &[(u32, Address)]) -> Option<(VdiskId, MapRun)> {
        let run = self.run.as_ref()?;
        let complete = run.complete && run.waiting.is_empty() && run.in_stripes == pieces.len();
        if !complete {
            return None;
        }
        let mut places = run.done.clone();
        places.extend(pieces.iter().map(|(group, address)| (*group, Some(*address))));
        let place = |(group, address)| PiecePlace { group, address };
        let pieces: Vec<PiecePlace> = places.into_iter().map(place).collect();
        let (vdisk, frontier) = (run.vdisk, run.frontier);
        let unreferenced = self.map.leaves(vdisk, &pieces);
        Some((vdisk, MapRun { frontier, pieces, unreferenced }))
    }

    /// These pieces are durable; and so is the run that they completed.
    pub fn pieces_committed(
        &mut self,
        run_number: u64,
        pieces: &[(u32, Address)],
        ended: Option<&MapRun>,
    ) {
        let Some(run) = self.run.as_mut().filter(|run| run.number == run_number) else { return };
        run.in_stripes -= pieces.len();
        run.done.extend(pieces.iter().map(|(group, address)| (*group, Some(*address))));
        let Some(ended) = ended else { return };
        reached(Point::HostRunCommitted);
        let (id, frontier) = (run.vdisk, run.frontier);
        for piece in &ended.pieces {
            self.map.set_piece(id, piece.group, piece.address);
        }
        self.map.left(id, &ended.unreferenced);
        self.stats.stripes_left += ended.unreferenced.len() as u64;
        for stripe in &ended.unreferenced {
            // Nothing here will read it again; another core's or a closed vdisk's reads would fetch it.
            if !self.map.is_named(*stripe) {
                self.flash.forget(*stripe);
            }
        }
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
