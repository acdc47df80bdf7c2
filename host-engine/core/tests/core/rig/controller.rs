//! A scripted controller: log, grants, shards and commits in memory, strict about everything that
//! a host core promises. What it holds survives its process, as it would on its peer and its drives.

use bytes::Bytes;
use cleave_format::address::Address;
use cleave_format::control::{CommitVdisk, GrantedStripe, SlotPlace};
use cleave_format::footer;
use cleave_format::ids::*;
use cleave_format::layout::*;
use cleave_format::record::{Record, RecordIdentity};
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_runtime::links::{Class, ConnectionId, LinkEvent, Links};
use cleave_runtime::message::Message;
use cleave_runtime_sim::Process;
use cleave_wire::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What a data node holds.
pub struct Pool {
    pub log_identity: u64,
    pub records: BTreeMap<Position, (RecordIdentity, Bytes)>,
    pub next: u64,
    pub seals: BTreeMap<VdiskId, Epoch>,
    pub grants: BTreeMap<StripeId, GrantedStripe>,
    pub identities: BTreeSet<StripeId>,
    pub shards: BTreeMap<(StripeId, u8), Bytes>,
    pub stripes: BTreeMap<StripeId, GrantedStripe>,
    /// Who may name a committed stripe, and since which commit.
    pub holders: BTreeMap<StripeId, BTreeMap<VdiskId, Position>>,
    pub freed: usize,
    pub commits: BTreeMap<StripeId, (Position, Vec<VdiskId>)>,
    pub map_commits: BTreeMap<VdiskId, Vec<MapCommit>>,
    pub pieces: BTreeMap<VdiskId, (Position, BTreeMap<u32, Address>)>,
    pub incarnation: Incarnation,
    pub lost: BTreeSet<DriveId>,
    /// Stripes some of whose shards lie elsewhere than at first.
    pub moved: BTreeSet<StripeId>,
    /// Bytes of these shards are flipped when read.
    pub rotten: BTreeSet<(StripeId, u8)>,
    pub quota: u64,
    /// Bytes of records beyond which appends are refused.
    pub capacity: u64,
    pub appends_refused: u32,
    pub data_shards: u8,
    pub cluster: ClusterId,
    pub runs: usize,
    pub releases: usize,
    /// What commits released.
    pub released: BTreeMap<Position, (RecordIdentity, Bytes)>,
    pub fail_writes: u32,
    pub no_space: bool,
    /// Renewals of leases are answered.
    pub gives_leases: bool,
    /// Stripes that a host said are damaged.
    pub told_damaged: BTreeSet<StripeId>,
    /// Gives what shards have that are not written.
    pub made_up: Option<MadeUp>,
}

/// The content of a range of a data shard.
pub type MadeUp = Box<dyn Fn(StripeId, u8, u32, u32) -> Bytes>;

impl Pool {
    pub fn new(data_shards: u8) -> Rc<RefCell<Pool>> {
        Rc::new(RefCell::new(Pool {
            log_identity: 1,
            records: BTreeMap::new(),
            next: 1,
            seals: BTreeMap::new(),
            grants: BTreeMap::new(),
            identities: BTreeSet::new(),
            shards: BTreeMap::new(),
            stripes: BTreeMap::new(),
            holders: BTreeMap::new(),
            freed: 0,
            commits: BTreeMap::new(),
            map_commits: BTreeMap::new(),
            pieces: BTreeMap::new(),
            incarnation: Incarnation(0),
            lost: BTreeSet::new(),
            moved: BTreeSet::new(),
            rotten: BTreeSet::new(),
            quota: 64 << 20,
            capacity: u64::MAX,
            appends_refused: 0,
            data_shards,
            cluster: ClusterId([7; 16]),
            runs: 0,
            releases: 0,
            released: BTreeMap::new(),
            fail_writes: 0,
            no_space: false,
            gives_leases: true,
            told_damaged: BTreeSet::new(),
            made_up: None,
        }))
    }

    /// The log is gone, as after an operator's explicit start with an empty one.
    pub fn lose_log(&mut self) {
        self.records.clear();
        self.log_identity += 1;
    }

    fn position(&mut self) -> Position {
        self.next += 1;
        Position(self.next)
    }

    fn last(&self, identity: &RecordIdentity) -> Option<Version> {
        let same = |(other, _): &&(RecordIdentity, Bytes)| {
            (other.vdisk, other.slice) == (identity.vdisk, identity.slice)
        };
        self.records.values().filter(same).map(|(other, _)| other.version).max()
    }

    fn append(&mut self, bytes: Bytes, begins: bool, newest: bool) -> Result<(), Refusal> {
        let record = Record::decode(&bytes).expect("hosts append records");
        let identity = record.identity;
        for (entry, data) in record.entries() {
            if entry.length > 0 {
                cleave_format::frame::check_in_log(data).expect("frames are intact");
            }
        }
        if self.seals.get(&identity.vdisk) != Some(&identity.version.epoch) {
            return Err(Refusal::Sealed);
        }
        let last = self.last(&identity).filter(|l| l.epoch == identity.version.epoch);
        match last {
            Some(last) if identity.version <= last => return Ok(()),
            Some(last) if identity.version.sequence.0 == last.sequence.0 + 1 => {}
            // What came between was released: a commit need not take the oldest first.
            Some(_) if begins => {}
            Some(_) => return Err(Refusal::Gap),
            None if begins && newest => {}
            None => return Err(Refusal::Gap),
        }
        let held: u64 = self.records.values().map(|(_, bytes)| bytes.len() as u64).sum();
        if held + bytes.len() as u64 > self.capacity {
            self.appends_refused += 1;
            return Err(Refusal::Full);
        }
        let position = self.position();
        self.records.insert(position, (identity, bytes));
        Ok(())
    }

    fn commit(
        &mut self,
        stripe: StripeId,
        missing: u16,
        mut vdisks: Vec<CommitVdisk>,
    ) -> Result<(Position, Vec<VdiskId>), Refusal> {
        if let Some(known) = self.commits.get(&stripe) {
            return Ok(known.clone());
        }
        let mut references = vdisks.iter().flat_map(|part| &part.references);
        if !references.all(|reference| self.stripes.contains_key(reference)) {
            return Err(Refusal::NoReference);
        }
        let granted = self.grants.remove(&stripe);
        if granted.is_none() && !self.identities.remove(&stripe) {
            return Err(Refusal::NoGrant);
        }
        if let Some(grant) = &granted {
            let lost = |(index, place): &(usize, &SlotPlace)| {
                self.lost.contains(&place.drive) || missing & 1 << index != 0
            };
            if grant.slots.iter().enumerate().filter(lost).count() > 1 {
                return Err(Refusal::Degraded);
            }
            let written = (0..grant.slots.len() as u8)
                .filter(|shard| self.shards.contains_key(&(stripe, *shard)));
            assert!(written.count() + 1 >= grant.slots.len(), "C10: only what was written");
            if missing == 0 {
                self.check_stripe(grant);
            }
            self.stripes.insert(stripe, grant.clone());
        }
        let position = self.position();
        let mut struck = Vec::new();
        for part in &vdisks {
            let current = self.seals.get(&part.vdisk) == Some(&part.epoch);
            if current
                && granted.is_some()
                && (part.in_footer || part.has_pieces || part.run.is_some())
            {
                self.holders.entry(stripe).or_default().insert(part.vdisk, position);
            }
            for reference in part.references.iter().filter(|_| current) {
                let holders = self.holders.get_mut(reference).expect("checked before");
                holders.insert(part.vdisk, position);
            }
        }
        for part in &mut vdisks {
            if self.seals.get(&part.vdisk) != Some(&part.epoch) {
                struck.push(part.vdisk);
                continue;
            }
            for release in &part.releases {
                for sequence in release.first.0..=release.last.0 {
                    let version = Version { epoch: release.epoch, sequence: Sequence(sequence) };
                    let found = self.records.iter().find(|(_, (identity, _))| {
                        (identity.vdisk, identity.slice, identity.version)
                            == (part.vdisk, release.slice, version)
                    });
                    let at = *found.expect("C4: the log holds what is released").0;
                    let record = self.records.remove(&at).unwrap();
                    self.released.insert(at, record);
                    self.releases += 1;
                }
            }
            if part.in_footer || !part.entries.is_empty() {
                self.map_commits.entry(part.vdisk).or_default().push(MapCommit {
                    position,
                    stripe: granted.clone().filter(|_| part.in_footer),
                    entries: part.entries.clone(),
                });
            }
            if let Some(run) = &part.run {
                self.runs += 1;
                let (frontier, pieces) = self.pieces.entry(part.vdisk).or_default();
                assert!(run.frontier >= *frontier && run.frontier < position);
                *frontier = run.frontier;
                for piece in &run.pieces {
                    match piece.address {
                        Some(address) => {
                            assert!(self.stripes.contains_key(&address.stripe), "C19");
                            pieces.insert(piece.group, address);
                        }
                        None => drop(pieces.remove(&piece.group)),
                    }
                }
                let commits = self.map_commits.entry(part.vdisk).or_default();
                commits.retain(|commit| commit.position > run.frontier);
                let left = run.unreferenced.clone();
                let frontier = run.frontier;
                left.into_iter().for_each(|stripe| self.leave(part.vdisk, stripe, frontier));
            }
        }
        self.commits.insert(stripe, (position, struck.clone()));
        Ok((position, struck))
    }

    /// The vdisk leaves a stripe; one that nobody may name is freed.
    fn leave(&mut self, vdisk: VdiskId, stripe: StripeId, frontier: Position) {
        let Some(holders) = self.holders.get_mut(&stripe) else { return };
        let position = *holders.get(&vdisk).expect("a vdisk leaves what it holds, once");
        assert!(position <= frontier, "C21: a host knows what it put in after the frontier");
        holders.remove(&vdisk);
        if !holders.is_empty() {
            return;
        }
        self.holders.remove(&stripe);
        self.stripes.remove(&stripe);
        self.shards.retain(|(of, _), _| *of != stripe);
        self.freed += 1;
        let mut pieces = self.pieces.values().flat_map(|(_, pieces)| pieces.values());
        assert!(pieces.all(|address| address.stripe != stripe), "a current piece lies in it");
        let mut commits = self.map_commits.values().flatten();
        let opens = |commit: &MapCommit| commit.stripe.as_ref().is_some_and(|s| s.stripe == stripe);
        assert!(!commits.any(opens), "C21: a commit that no run reflects is in it");
    }

    /// Parity is what it should be, the footer lists what is there.
    fn check_stripe(&self, grant: &GrantedStripe) {
        let shard =
            |index: usize| self.shards.get(&(grant.stripe, index as u8)).map(|shard| &shard[..]);
        let k = grant.data_shards();
        let shards: Vec<Option<&[u8]>> = (0..k + 2).map(shard).collect();
        let data: Option<Vec<&[u8]>> = shards[..k].iter().copied().collect();
        let Some(data) = data else { return };
        let (mut first, mut second) = (vec![0; SHARD], vec![0; SHARD]);
        cleave_erasure::Encoder::new().encode(&data, [&mut first, &mut second]);
        assert!(shards[k].is_none_or(|p| p == first) && shards[k + 1].is_none_or(|p| p == second));
        let section = data.concat();
        for entry in footer::decode(grant.stripe, &section).expect("a footer ends the section") {
            if let footer::FooterContent::Frame { place, .. }
            | footer::FooterContent::MapPiece { place } = entry.content
            {
                let (start, length) = (place.offset as usize, place.length as usize);
                let frame = &section[start..start + length];
                cleave_format::frame::check_at(frame, &place.address(grant.stripe)).unwrap();
            }
        }
    }

    /// Shards come to lie elsewhere (C16): those on lost drives, and of each stripe one more.
    pub fn move_shards(&mut self) {
        for (stripe, granted) in &mut self.stripes {
            let taken: Vec<DriveId> = granted.slots.iter().map(|place| place.drive).collect();
            let lost = &self.lost;
            let mut free = (0..12).map(DriveId).filter(|d| !taken.contains(d) && !lost.contains(d));
            let also = stripe.0 as usize % granted.slots.len();
            // Those on lost drives first: there may be too few others for both.
            for round in 0..2 {
                for (shard, place) in granted.slots.iter_mut().enumerate() {
                    let gone = lost.contains(&place.drive);
                    if (round == 0 && gone) || (round == 1 && shard == also) {
                        let Some(drive) = free.next() else { continue };
                        let slot = SlotIndex(place.slot.0 + 1_000_000);
                        *place = SlotPlace { drive, slot, generation: 1 };
                        self.moved.insert(*stripe);
                    }
                }
            }
        }
    }

    fn read(
        &self,
        stripe: StripeId,
        shard: u8,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ShardFault> {
        let Some(found) = self.stripes.get(&stripe) else { return Err(ShardFault::Identity) };
        let place = found.slots[usize::from(shard)];
        if self.lost.contains(&place.drive) {
            return Err(ShardFault::Lost);
        }
        let Some(data) = self.shards.get(&(stripe, shard)) else {
            let made_up = self.made_up.as_ref().ok_or(ShardFault::Io)?;
            return Ok(made_up(stripe, shard, offset, length));
        };
        let range = data.slice(offset as usize..(offset + length) as usize);
        if self.rotten.contains(&(stripe, shard)) {
            let mut bytes = range.to_vec();
            bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 0x55);
            return Ok(Bytes::from(bytes));
        }
        Ok(range)
    }
}

struct Peer {
    /// Lanes whose appends are passed over after a refusal.
    ended: [bool; 4],
    class: Class,
    hello: Option<Hello>,
    refused: bool,
}

/// One start of the controller's process.
pub struct Controller {
    pool: Rc<RefCell<Pool>>,
    links: Rc<dyn Links>,
    peers: BTreeMap<ConnectionId, Peer>,
    newest: BTreeMap<u16, u64>,
}

pub fn start(process: &Process, pool: &Rc<RefCell<Pool>>) {
    let mut controller = Controller {
        pool: Rc::clone(pool),
        links: process.links(),
        peers: BTreeMap::new(),
        newest: BTreeMap::new(),
    };
    process.set_turn(move || controller.turn());
}

impl Controller {
    fn turn(&mut self) -> bool {
        let mut events = Vec::new();
        self.links.poll(&mut events);
        let any = !events.is_empty();
        for event in events {
            match event {
                LinkEvent::Accepted { connection, class, .. } => {
                    self.peers.insert(
                        connection,
                        Peer { class, hello: None, refused: false, ended: [false; 4] },
                    );
                }
                LinkEvent::Received { connection, lane, message } => {
                    self.received(connection, lane, message);
                }
                LinkEvent::Closed { connection, .. } => drop(self.peers.remove(&connection)),
                LinkEvent::Connected { .. } => {}
            }
        }
        any
    }

    fn reply(&self, to: ConnectionId, lane: u8, message: ControllerMessage, payload: &[Bytes]) {
        let mut parts = vec![encode_header(&message)];
        parts.extend_from_slice(payload);
        let _ = self.links.send(to, lane, &parts);
    }

    fn received(&mut self, from: ConnectionId, lane: u8, mut message: Message) {
        let header: HostMessage = decode_header(|count| message.take(count)).unwrap();
        let pool_rc = Rc::clone(&self.pool);
        let mut pool = pool_rc.borrow_mut();
        let Some(peer) = self.peers.get_mut(&from).filter(|peer| !peer.refused) else { return };
        if let HostMessage::Hello(hello) = header {
            if hello.incarnation < pool.incarnation {
                let refused =
                    ControllerMessage::Refused { reason: "superseded".into(), fatal: true };
                return self.reply(from, 0, refused, &[]);
            }
            if hello.incarnation > pool.incarnation {
                pool.incarnation = hello.incarnation;
                pool.grants.clear();
                pool.identities.clear();
            }
            if peer.class == Class::Log {
                self.newest.insert(hello.core, hello.connection);
            }
            peer.hello = Some(hello);
            let welcome = Welcome {
                log: pool.log_identity,
                epoch: Epoch(1),
                quota: pool.quota,
                data_shards: pool.data_shards,
                lost_drives: pool.lost.iter().copied().collect(),
            };
            return self.reply(from, 0, ControllerMessage::Welcome(welcome), &[]);
        }
        let hello = peer.hello.clone().expect("Hello comes first");
        if hello.incarnation != pool.incarnation {
            peer.refused = true;
            self.links.close(from, "superseded");
            return;
        }
        let answer = match header {
            HostMessage::Hello(_) => unreachable!(),
            HostMessage::Append(append) => {
                if peer.ended[usize::from(lane)] {
                    return;
                }
                let newest = self.newest[&hello.core] == hello.connection;
                for record in &append.records {
                    let bytes = message.take(record.length as usize).unwrap();
                    if let Err(reason) = pool.append(bytes, record.begins, newest) {
                        peer.ended[usize::from(lane)] = true;
                        let number = append.number;
                        let refused = ControllerMessage::AppendRefused { number, reason };
                        return self.reply(from, lane, refused, &[]);
                    }
                }
                ControllerMessage::Mirrored { through: append.number }
            }
            HostMessage::Seal { request, vdisk, epoch, .. } => {
                let known = pool.seals.get(&vdisk).copied().unwrap_or_default();
                let result = match epoch >= known {
                    true => Ok(pool.position()),
                    false => Err(Refusal::Sealed),
                };
                if result.is_ok() {
                    pool.seals.insert(vdisk, epoch);
                }
                ControllerMessage::Done { request, result }
            }
            HostMessage::Commit { request, stripe, shards_missing, vdisks } => {
                let (result, struck) = match pool.commit(stripe, shards_missing, vdisks) {
                    Ok((position, struck)) => (Ok(position), struck),
                    Err(refusal) => (Err(refusal), Vec::new()),
                };
                ControllerMessage::Committed { request, result, struck }
            }
            HostMessage::Delete { request, vdisk, epoch } => {
                assert_eq!(pool.seals.get(&vdisk), Some(&epoch));
                pool.seals.insert(vdisk, Epoch(u64::MAX));
                pool.records.retain(|_, (identity, _)| identity.vdisk != vdisk);
                ControllerMessage::Done { request, result: Ok(pool.position()) }
            }
            HostMessage::Grant { request, stripes, identities, .. } => {
                let count = match pool.no_space {
                    true => 0,
                    false => stripes,
                };
                let stripes: Vec<GrantedStripe> = (0..count).map(|_| grant(&mut pool)).collect();
                let identities: Vec<StripeId> = (0..identities)
                    .map(|_| {
                        let identity = StripeId(pool.position().0);
                        pool.identities.insert(identity);
                        identity
                    })
                    .collect();
                let shortage = pool.no_space.then(|| "full".to_owned());
                ControllerMessage::Granted { request, stripes, identities, shortage }
            }
            HostMessage::Renew { .. } if !pool.gives_leases => return,
            HostMessage::Renew { request, vdisks } => {
                let lost = |(vdisk, epoch): &(VdiskId, Epoch)| pool.seals.get(vdisk) != Some(epoch);
                let lost = vdisks.iter().filter(|one| lost(one)).map(|(vdisk, _)| *vdisk).collect();
                ControllerMessage::Renewed { request, lost }
            }
            HostMessage::ReturnGrant { stripes } => {
                stripes.iter().for_each(|stripe| drop(pool.grants.remove(stripe)));
                return;
            }
            HostMessage::Damaged { stripes } => {
                pool.told_damaged.extend(stripes);
                return;
            }
            HostMessage::Fetch { request, vdisk, epoch, from: start } => {
                assert_eq!(pool.seals.get(&vdisk), Some(&epoch));
                let all = pool.records.range(start..).filter(|(_, (i, _))| i.vdisk == vdisk);
                let mut page: Vec<(Position, Bytes)> =
                    all.take(4).map(|(position, (_, bytes))| (*position, bytes.clone())).collect();
                let next = (page.len() == 4).then(|| page.pop().unwrap().0);
                let records = page.iter().map(|(_, bytes)| bytes.len() as u32).collect();
                let payload: Vec<Bytes> = page.into_iter().map(|(_, bytes)| bytes).collect();
                let refused = None;
                let fetched = ControllerMessage::Fetched { request, records, next, refused };
                return self.reply(from, lane, fetched, &payload);
            }
            HostMessage::OpenMap { request, vdisk, epoch, cursor } => {
                assert_eq!(pool.seals.get(&vdisk), Some(&epoch));
                let (frontier, pieces) = pool.pieces.get(&vdisk).cloned().unwrap_or_default();
                let first = matches!(cursor, None | Some(MapCursor::Pieces(_)));
                let place = |(group, address): (u32, Address)| cleave_format::control::PiecePlace {
                    group,
                    address: Some(address),
                };
                let pieces = pieces.into_iter().filter(|_| first).map(place).collect();
                let commits = match first {
                    true => Vec::new(),
                    false => pool.map_commits.get(&vdisk).cloned().unwrap_or_default(),
                };
                let next = first.then_some(MapCursor::Commits(frontier));
                let refused = None;
                ControllerMessage::Map { request, frontier, pieces, commits, next, refused }
            }
            HostMessage::ListStripes { request, vdisk, epoch, from } => {
                assert_eq!(pool.seals.get(&vdisk), Some(&epoch));
                let listed = pool.holders.range(from..).filter_map(|(stripe, holders)| {
                    let (stripe, position) = (*stripe, *holders.get(&vdisk)?);
                    Some(ListedStripe { stripe, position })
                });
                let mut stripes: Vec<ListedStripe> = listed.take(4).collect();
                let next = (stripes.len() == 4).then(|| stripes.pop().unwrap().stripe);
                ControllerMessage::Listed { request, stripes, next, refused: None }
            }
            HostMessage::Locate { request, stripes } => {
                let known = stripes.iter().filter_map(|stripe| pool.stripes.get(stripe).cloned());
                ControllerMessage::Located { request, stripes: known.collect() }
            }
            HostMessage::Read { request, stripe, shard, offset, length, place } => {
                let elsewhere = |found: &GrantedStripe| found.slots[usize::from(shard)] != place;
                let elsewhere = pool.stripes.get(&stripe).is_some_and(elsewhere);
                assert!(!elsewhere || pool.moved.contains(&stripe));
                let result = match elsewhere {
                    true if pool.lost.contains(&place.drive) => Err(ShardFault::Lost),
                    true => Err(ShardFault::Identity),
                    false => pool.read(stripe, shard, offset, length),
                };
                match result {
                    Ok(bytes) => {
                        let read = ControllerMessage::Read { request, result: Ok(()) };
                        return self.reply(from, lane, read, &[bytes]);
                    }
                    Err(fault) => ControllerMessage::Read { request, result: Err(fault) },
                }
            }
            HostMessage::WriteShard { request, stripe, shard, place } => {
                let result = match pool.grants.get(&stripe) {
                    _ if pool.fail_writes > 0 => {
                        pool.fail_writes -= 1;
                        Err(ShardFault::Io)
                    }
                    _ if pool.lost.contains(&place.drive) => Err(ShardFault::Lost),
                    Some(grant) if grant.slots[usize::from(shard)] == place => Ok(()),
                    _ => Err(ShardFault::Identity),
                };
                if result.is_ok() {
                    let header = SlotHeader::decode(&message.take(SLOT_HEADER).unwrap()).unwrap();
                    let data = message.take_rest();
                    let index = usize::from(shard);
                    header.check_identity(pool.cluster, stripe, index, &place).unwrap();
                    assert_eq!(header.columns, column_checksums(&data));
                    pool.shards.insert((stripe, shard), data);
                }
                ControllerMessage::ShardWritten { request, result }
            }
        };
        self.reply(from, lane, answer, &[]);
    }
}

fn grant(pool: &mut Pool) -> GrantedStripe {
    let stripe = StripeId(pool.position().0);
    let drives: Vec<u16> = (0..12).filter(|drive| !pool.lost.contains(&DriveId(*drive))).collect();
    let count = usize::from(pool.data_shards) + PARITY_SHARDS;
    let slots = (0..count)
        .map(|index| SlotPlace {
            drive: DriveId(drives[(stripe.0 as usize + index) % drives.len()]),
            slot: SlotIndex(stripe.0 as u32),
            generation: 1,
        })
        .collect();
    let grant = GrantedStripe { stripe, slots };
    pool.grants.insert(stripe, grant.clone());
    grant
}
