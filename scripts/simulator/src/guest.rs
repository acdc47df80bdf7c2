//! A guest: several queues' worth of requests in flight on one vdisk, and the judge of what it is told.
//!
//! It lives outside of the host engine's process, as a virtual machine does. When the engine dies it either
//! *resumes* (C24): everything in flight is taken again by the next engine, changes in the order in which
//! they were taken, then reads, all before any new request; or it dies with it, and what was in flight happened or
//! did not. Requests that overlap are completed in the order taken, whichever cores have the shares, so the judge holds the
//! engine to that and to published content too (C23).

use crate::journal::Journal;
use crate::workload::{BLOCK_SECTORS, Request, Workload};
use cleave_format::ids::VdiskId;
use cleave_host_core::{GuestCompletion, GuestRequest, Operation};
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::random::Random;
use cleave_verify::content::{Content, SECTOR, ZEROS, fill, recognise};
use cleave_verify::model::{Change, Model, Moment, Sectors};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Sectors of a read of the final pass.
const CHECK_SECTORS: u64 = 256;
/// Sectors of a write of a region from beginning to end.
const REWRITE_SECTORS: u64 = 128;
/// Marks the tokens of reads that an engine is asked for that does not serve the disk any more.
const SPIED: Token = 1 << 63;
/// Reads of this kind in flight at most, and sectors of one.
const SPIED_MAX: usize = 4;
/// See [`SPIED_MAX`].
const SPIED_SECTORS: u64 = 16;
/// What is written so: no content of a guest's.
const SPY_CONTENT: Content = Content(u32::MAX);
/// One of so many is a write.
const SPY_WRITES_ONE_IN: u64 = 8;
/// Changes that are remembered to be read so.
const CHANGED_MAX: usize = 32;
/// The judge forgets what is settled after so many completions.
const SWEEP_EVERY: u64 = 512;

/// What is in flight for the judge.
enum Judged {
    Change(Change),
    Read(Moment),
    Nothing,
}

struct InFlight {
    request: Request,
    /// Number of a write's content.
    content: Content,
    judged: Judged,
}

/// A guest and its disk.
pub struct Guest {
    vdisk: VdiskId,
    sectors: u64,
    seed: u64,
    model: Model,
    /// By sector, contents since it was known to be durable, oldest first; none are kept where nothing is to be
    /// lost.
    history: Option<Vec<Vec<Content>>>,
    workload: Workload,
    random: Rc<dyn Random>,
    journal: Journal,
    /// Requests in flight at most.
    depth: usize,
    in_flight: BTreeMap<Token, InFlight>,
    /// To be taken again before anything new.
    resume: VecDeque<Token>,
    /// Tokens of the requests that were taken again and are not completed.
    resumed: usize,
    /// Of these, those that change something.
    resumed_changes: usize,
    /// The engine had no room for it.
    held: Option<(Request, Content)>,
    next_token: Token,
    writes: u32,
    /// Requests that it may still begin.
    budget: u64,
    /// It begins nothing before.
    pause_until: Duration,
    /// One request in so many is followed by a pause.
    pause_one_in: u64,
    pause_max: Duration,
    /// The next sector of a pass over everything, while there is one.
    check: Option<u64>,
    /// What is left of a region that it writes from beginning to end.
    rewriting: Sectors,
    completed: u64,
    /// What it changed last.
    changed: VecDeque<Sectors>,
    /// Reads and a write asked of an engine that does not serve the disk any more.
    spied: BTreeMap<Token, Spied>,
    next_spied: u64,
    /// The next engine has served the disk since it moved: what the one before is asked to write now it must refuse.
    served_elsewhere: bool,
    /// Changes that were in flight when it moved, and may take effect until the next engine serves.
    left: BTreeMap<Token, (Change, Sectors)>,
}

/// A request for an engine that does not serve the disk any more.
enum Spied {
    Read(Sectors, Moment),
    Write,
}

impl Guest {
    /// A guest of a disk full of zeros.
    pub fn new(vdisk: VdiskId, size: u64, random: Rc<dyn Random>, journal: Journal) -> Guest {
        let sectors = size / SECTOR as u64;
        let workload = Workload::new(Rc::clone(&random), sectors);
        Guest {
            vdisk,
            sectors,
            seed: random.next_u64(),
            model: Model::zeros(sectors, true),
            history: None,
            workload,
            depth: [1, 4, 16, 32, 64][random.below(5) as usize],
            in_flight: BTreeMap::new(),
            resume: VecDeque::new(),
            resumed: 0,
            resumed_changes: 0,
            held: None,
            next_token: vdisk.0 << 40,
            writes: 0,
            budget: 0,
            pause_until: Duration::ZERO,
            pause_one_in: [0, 200, 20, 4][random.below(4) as usize],
            pause_max: Duration::from_micros([50, 1_000, 50_000][random.below(3) as usize]),
            check: None,
            rewriting: 0..0,
            completed: 0,
            changed: VecDeque::new(),
            spied: BTreeMap::new(),
            next_spied: 0,
            served_elsewhere: false,
            left: BTreeMap::new(),
            random,
            journal,
        }
    }

    /// Remembers older contents from now on: everything that is not durable may be lost once.
    pub fn remember(&mut self) {
        self.history = Some(vec![vec![ZEROS]; self.sectors as usize]);
    }

    /// All blocks but these are durable as they are; nothing is in flight.
    pub fn durable_but(&mut self, unreleased: &BTreeSet<u64>) {
        self.lose_left();
        let Some(history) = &mut self.history else { return };
        for (sector, contents) in (0..).zip(history) {
            if !unreleased.contains(&(sector / BLOCK_SECTORS)) {
                *contents = self.model.possible(sector);
            }
        }
    }

    /// What these blocks hold was not durable, and nobody has it any more; the guest has died.
    pub fn doubt(&mut self, unreleased: &BTreeSet<u64>) {
        self.lose_left();
        let history = self.history.as_ref().expect("older contents are remembered");
        for block in unreleased {
            for sector in block * BLOCK_SECTORS..(block + 1) * BLOCK_SECTORS {
                self.model.doubt(sector, &history[sector as usize]);
            }
        }
    }

    /// Its content is that of other guests with the same seed. Nothing may be written yet.
    pub fn write_as(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!(
            "vdisk {} of {} KiB, depth {}, {:?}",
            self.vdisk,
            self.sectors / 2,
            self.depth,
            self.workload.profile()
        )
    }

    /// What it waits for, in words.
    pub fn standing(&self) -> String {
        let oldest = self.in_flight.first_key_value();
        let oldest =
            oldest.map(|(token, over)| format!(", the oldest {token:#x} {:?}", over.request));
        format!(
            "may begin {}, has {} in flight{}, {} to resume, {} held",
            self.budget,
            self.in_flight.len(),
            oldest.unwrap_or_default(),
            self.resume.len(),
            usize::from(self.held.is_some()),
        )
    }

    /// Its disk.
    pub fn vdisk(&self) -> VdiskId {
        self.vdisk
    }

    /// Its disk's bytes.
    pub fn size(&self) -> u64 {
        self.sectors * SECTOR as u64
    }

    /// Lets it begin so many requests from now on.
    pub fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
        self.pause_until = Duration::ZERO;
    }

    /// Requests that it may still begin.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Whether nothing is in flight or about to be.
    pub fn is_quiet(&self) -> bool {
        self.budget == 0 && self.check.is_none() && self.rewriting.is_empty() && self.is_idle()
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.held.is_none()
    }

    /// Its requests fall into one region from now on: some place, and sectors; `None`: anywhere, as before.
    pub fn focus(&mut self, region: Option<(u64, u64)>) {
        self.workload.focus(region);
    }

    /// Writes these sectors once, from the first to the last, with content that cannot be compressed, before it does
    /// anything else.
    pub fn rewrite(&mut self, sectors: Sectors) {
        self.rewriting = sectors;
        self.pause_until = Duration::ZERO;
    }

    /// Reads everything once.
    pub fn check_everything(&mut self) {
        self.check = Some(0);
    }

    /// Sectors whose content is still open.
    pub fn undecided(&mut self) -> usize {
        self.model.sweep();
        self.model.undecided()
    }

    /// Its disk has grown to so many bytes; what is new is zero.
    pub fn grow(&mut self, size: u64) {
        self.sectors = size / SECTOR as u64;
        self.model.grow(self.sectors);
        if let Some(history) = &mut self.history {
            history.resize(self.sectors as usize, vec![ZEROS]);
        }
        self.workload.grow(self.sectors);
    }

    /// Its disk was deleted: it begins anew on another one, full of zeros. Nothing may be in flight.
    pub fn begin_anew(&mut self, vdisk: VdiskId) {
        assert!(self.is_idle(), "a disk in use is not deleted");
        self.vdisk = vdisk;
        self.next_token = vdisk.0 << 40;
        self.seed = self.random.next_u64();
        self.model = Model::zeros(self.sectors, true);
        if self.history.is_some() {
            self.remember();
        }
        self.check = None;
        self.rewriting = 0..0;
        // They are of the other disk.
        self.spied.clear();
        self.changed.clear();
        self.left.clear();
    }

    /// The engine died or gave the vdisk up. `resumes`: the guest lives on.
    pub fn engine_died(&mut self, resumes: bool) {
        self.resumed = 0;
        self.resumed_changes = 0;
        self.resume.clear();
        if resumes {
            // Reads last: the engine knows writes that are mirrored and not published, and a read between
            // two that are done again could return the later one, and the next read the earlier.
            let changes = |over: &InFlight| matches!(over.judged, Judged::Change(_));
            let (mut writes, reads): (Vec<_>, Vec<_>) =
                self.in_flight.iter().partition(|(_, over)| changes(over));
            if is_planted(Planted::ResumeNewestFirst) {
                writes.reverse();
            }
            self.resume.extend(writes.into_iter().chain(reads).map(|(token, _)| *token));
            return;
        }
        for (_, change, sectors) in self.leave() {
            self.model.lose(change, sectors);
        }
        self.model.sweep();
    }

    /// Gives up what is in flight; gives the changes, with their tokens.
    fn leave(&mut self) -> Vec<(Token, Change, Sectors)> {
        self.resumed = 0;
        self.resumed_changes = 0;
        self.resume.clear();
        self.held = None;
        self.rewriting = 0..0;
        // A pass over everything begins anew: its reads are gone.
        self.check = self.check.map(|_| 0);
        self.journal.given_up(self.in_flight.len() as u64);
        let mut changes = Vec::new();
        for (token, lost) in std::mem::take(&mut self.in_flight) {
            match lost.judged {
                Judged::Change(change) => {
                    let sectors = lost.request.changes().expect("a change has sectors");
                    changes.push((token, change, sectors));
                }
                Judged::Read(begun) => self.model.lose_read(begun),
                Judged::Nothing => {}
            }
        }
        changes
    }

    /// It dies, and starts again where another engine is to serve its disk; the engine that it leaves may be alive, and
    /// go on with what it took until then.
    pub fn moved(&mut self) {
        self.served_elsewhere = false;
        let changes = self.leave();
        self.left.extend(changes.into_iter().map(|(token, change, of)| (token, (change, of))));
    }

    /// The engine that it left completed a change.
    pub fn completed_behind(&mut self, completion: &GuestCompletion) {
        if completion.result.is_err() {
            return;
        }
        if let Some((change, sectors)) = self.left.remove(&completion.token)
            && let Err(violation) = self.model.complete(change, sectors)
        {
            let vdisk = self.vdisk;
            self.journal.fail(format!("vdisk {vdisk}: by the engine that it left: {violation}"));
        }
    }

    /// The next engine serves: what was left behind happened by now, or never will.
    fn lose_left(&mut self) {
        for (_, (change, sectors)) in std::mem::take(&mut self.left) {
            self.model.lose(change, sectors);
        }
    }

    /// Sends what may be sent. True when something was sent. `now` is virtual time; the second result
    /// says when to look again.
    pub fn send(
        &mut self,
        submit: &mut dyn FnMut(GuestRequest) -> Result<(), GuestRequest>,
        now: Duration,
    ) -> (bool, Option<Duration>) {
        let mut any = false;
        self.served_elsewhere = true;
        self.lose_left();
        // C24: what was in flight goes first, and is over before anything new begins.
        let late = is_planted(Planted::ReexecuteLate) && (self.budget > 0 || self.held.is_some());
        while let Some(token) = self.resume.front().copied().filter(|_| !late) {
            let again = &self.in_flight[&token];
            let change = matches!(again.judged, Judged::Change(_));
            if !change && self.resumed_changes > 0 {
                return (any, None);
            }
            let request = self.request(token, &again.request, again.content);
            if submit(request).is_err() {
                return (any, None);
            }
            any = true;
            self.resume.pop_front();
            self.resumed += 1;
            self.resumed_changes += usize::from(change);
        }
        if self.resumed > 0 {
            return (any, None);
        }
        while self.in_flight.len() - self.resume.len() < self.depth {
            if self.held.is_none() {
                if now < self.pause_until {
                    return (any, Some(self.pause_until));
                }
                self.held = self.next_request();
            }
            let Some((request, content)) = self.held.take() else { break };
            let token = self.next_token;
            let sent = self.request(token, &request, content);
            if submit(sent).is_err() {
                self.held = Some((request, content));
                break;
            }
            any = true;
            self.next_token += 1;
            self.begun(token, request, content);
            if self.pause_one_in > 0 && self.random.below(self.pause_one_in) == 0 {
                let nanos = self.random.below(self.pause_max.as_nanos() as u64);
                self.pause_until = now + Duration::from_nanos(nanos);
            }
        }
        (any, None)
    }

    fn next_request(&mut self) -> Option<(Request, Content)> {
        if !self.rewriting.is_empty() {
            let Sectors { start, end } = self.rewriting;
            let next = (start + REWRITE_SECTORS).min(end);
            self.rewriting.start = next;
            // Every fourth one is nothing but noise.
            self.writes = (self.writes + 1).next_multiple_of(4);
            return Some((Request::Write(start..next), Content(self.writes)));
        }
        if self.budget > 0 {
            self.budget -= 1;
            let request = self.workload.next();
            let content = match request {
                // Content that was there before, here or on another disk: it is recognised, and referred to.
                Request::Write(_) if self.writes > 0 && self.random.below(6) == 0 => {
                    Content(1 + self.random.below(u64::from(self.writes.min(4))) as u32)
                }
                Request::Write(_) => {
                    self.writes += 1;
                    Content(self.writes)
                }
                _ => ZEROS,
            };
            return Some((request, content));
        }
        let first = self.check?;
        let end = (first + CHECK_SECTORS).min(self.sectors);
        self.check = (end < self.sectors).then_some(end);
        Some((Request::Read(first..end), ZEROS))
    }

    fn request(&self, token: Token, request: &Request, content: Content) -> GuestRequest {
        let offset = |sector: u64| sector * SECTOR as u64;
        let operation = match request {
            Request::Write(sectors) | Request::WriteZeroData(sectors) => {
                let length = offset(sectors.end - sectors.start);
                let mut data = Buffer::new(length as usize);
                for (sector, bytes) in sectors.clone().zip(data.chunks_mut(SECTOR)) {
                    fill(self.seed, content, sector, bytes);
                }
                Operation::Write { offset: offset(sectors.start), data }
            }
            Request::Read(sectors) => {
                let length = offset(sectors.end - sectors.start) as u32;
                Operation::Read { offset: offset(sectors.start), length }
            }
            Request::Zero(sectors) => Operation::WriteZeroes {
                offset: offset(sectors.start),
                length: offset(sectors.end - sectors.start),
                unmap: sectors.start.is_multiple_of(2),
            },
            Request::Discard(sectors) => Operation::Discard {
                offset: offset(sectors.start),
                length: offset(sectors.end - sectors.start),
            },
            Request::Flush => Operation::Flush,
        };
        GuestRequest { token, vdisk: self.vdisk, operation }
    }

    fn begun(&mut self, token: Token, request: Request, content: Content) {
        let judged = match (&request, request.changes()) {
            (_, Some(sectors)) => {
                if let Some(history) = &mut self.history {
                    let changed = &mut history[sectors.start as usize..sectors.end as usize];
                    changed.iter_mut().for_each(|contents| contents.push(content));
                }
                let change = self.model.change();
                self.model.begin(change, sectors, content, true);
                Judged::Change(change)
            }
            (Request::Read(_), None) => Judged::Read(self.model.begin_read()),
            _ => Judged::Nothing,
        };
        self.journal.begun();
        self.in_flight.insert(token, InFlight { request, content, judged });
    }

    /// Whether a completion is of one of its requests.
    pub fn owns(&self, token: Token) -> bool {
        token >> 40 == self.vdisk.0
    }

    /// Is told the end of a request, and judges it.
    pub fn complete(&mut self, completion: GuestCompletion) {
        let GuestCompletion { token, result, data } = completion;
        let Some(over) = self.in_flight.remove(&token) else {
            self.journal.fail(format!("request {token:#x} was completed, but was not in flight"));
            return;
        };
        if self.resumed > 0 {
            self.resumed -= 1;
            self.resumed_changes -= usize::from(matches!(over.judged, Judged::Change(_)));
        }
        self.journal.completed();
        self.completed += 1;
        if let Err(error) = result {
            let request = &over.request;
            self.journal.fail(format!("vdisk {}: {request:?} failed: {error}", self.vdisk));
            return;
        }
        let verdict = match over.judged {
            Judged::Change(change) => {
                let sectors = over.request.changes().expect("a change has sectors");
                self.changed.truncate(CHANGED_MAX - 1);
                self.changed.push_front(sectors.clone());
                self.model.complete(change, sectors).map_err(|violation| violation.to_string())
            }
            Judged::Read(begun) => self.judge_read(begun, &over.request, data),
            Judged::Nothing => Ok(()),
        };
        if let Err(what) = verdict {
            let (vdisk, request) = (self.vdisk, &over.request);
            self.journal.fail(format!("vdisk {vdisk}: {request:?} of token {token:#x}: {what}"));
        }
        if self.completed.is_multiple_of(SWEEP_EVERY) {
            self.model.sweep();
        }
    }

    /// A read for an engine that may have lost the disk to another one: whatever it answers must be true (C9). It
    /// is of what was changed last, or anywhere. Or a write, which it must not take (C8).
    pub fn spy(&mut self) -> Option<GuestRequest> {
        if self.spied.len() >= SPIED_MAX {
            return None;
        }
        self.next_spied += 1;
        let number = self.next_spied;
        let place = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let recent = self.changed.len().max(1) as u64;
        let start = match self.changed.get((number / 2 % recent) as usize) {
            Some(sectors) if number.is_multiple_of(2) => sectors.start,
            _ => place % self.sectors,
        };
        let sectors = start..(start + SPIED_SECTORS).min(self.sectors);
        let token = SPIED | self.vdisk.0 << 40 | number;
        let writes = self.spied.values().any(|spied| matches!(spied, Spied::Write));
        if self.served_elsewhere && !writes && number.is_multiple_of(SPY_WRITES_ONE_IN) {
            self.spied.insert(token, Spied::Write);
            return Some(self.request(token, &Request::Write(sectors), SPY_CONTENT));
        }
        let request = self.request(token, &Request::Read(sectors.clone()), ZEROS);
        self.spied.insert(token, Spied::Read(sectors, self.model.begin_read()));
        Some(request)
    }

    /// Whether a completion is of one of these.
    pub fn has_spied(&self, token: Token) -> bool {
        self.spied.contains_key(&token)
    }

    /// Is told the end of such a request, and judges it. True when it was a read that had an answer.
    pub fn spied(&mut self, completion: GuestCompletion) -> bool {
        let GuestCompletion { token, result, data } = completion;
        let (sectors, begun) = match self.spied.remove(&token) {
            Some(Spied::Read(sectors, begun)) => (sectors, begun),
            Some(Spied::Write) if result.is_ok() => {
                let vdisk = self.vdisk;
                self.journal.fail(format!("vdisk {vdisk}: a host that lost it completed a write"));
                return false;
            }
            _ => return false,
        };
        if result.is_err() {
            self.model.lose_read(begun);
            return false;
        }
        let verdict = self.judge_read(begun, &Request::Read(sectors.clone()), data);
        if let Err(what) = verdict {
            let vdisk = self.vdisk;
            let failed = format!(
                "vdisk {vdisk}: a host that lost it answered a read of {sectors:?}: {what}"
            );
            self.journal.fail(failed);
        }
        true
    }

    /// The engine that was asked for them is dead.
    pub fn end_spying(&mut self) {
        for (_, spied) in std::mem::take(&mut self.spied) {
            if let Spied::Read(_, begun) = spied {
                self.model.lose_read(begun);
            }
        }
    }

    fn judge_read(
        &mut self,
        begun: Moment,
        request: &Request,
        data: Option<Buffer>,
    ) -> Result<(), String> {
        let Request::Read(sectors) = request else { unreachable!("only reads are judged so") };
        let data = data.ok_or("a read was completed without data")?;
        let length = (sectors.end - sectors.start) as usize * SECTOR;
        if data.len() != length {
            return Err(format!("a read of {length} bytes gave {}", data.len()));
        }
        let mut contents = Vec::with_capacity(length / SECTOR);
        for (sector, bytes) in sectors.clone().zip(data.chunks(SECTOR)) {
            let content = recognise(self.seed, sector, bytes);
            contents.push(content.map_err(|what| {
                let block = sector / BLOCK_SECTORS;
                format!("sector {sector} (block {block}) holds nothing that was written: {what}")
            })?);
        }
        let judged = self.model.end_read(begun, sectors.start, &contents);
        judged.map_err(|violation| violation.to_string())
    }
}
