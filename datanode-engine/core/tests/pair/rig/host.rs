//! A host as the wire sees it: it appends, resends what is not mirrored after a connection broke,
//! seals, fetches, destages, commits. It knows what it was told, and checks that it is true.

use super::{CLUSTER, NAMES, Rig, SECOND, address};
use bytes::Bytes;
use cleave_erasure::Encoder;
use cleave_format::control::{CommitVdisk, GrantedStripe, MapRun, Release};
use cleave_format::frame::{self, Codec, FrameHeader};
use cleave_format::ids::*;
use cleave_format::layout::{SHARD, SLOT, SLOT_HEADER};
use cleave_format::record::{Entry, EntryKind, Record, RecordIdentity, encode_head};
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_runtime::links::{Class, ConnectionId, LinkEvent, Links};
use cleave_runtime_sim::Process;
use cleave_wire::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A record's name: slice, epoch, sequence.
pub type Name = (u32, u64, u64);

/// Connection, lane, message, payload.
pub type Event = (ConnectionId, u8, ControllerMessage, Vec<u8>);

#[derive(Default)]
pub struct Told {
    pub events: Vec<Event>,
    pub closed: Vec<ConnectionId>,
}

pub struct FakeHost {
    pub process: Process,
    links: Rc<dyn Links>,
    pub told: Rc<RefCell<Told>>,
    pub incarnation: u64,
    pub host: u32,
    connections: u64,
    /// The controller that is tried next.
    pub controller: usize,
    pub log: Option<ConnectionId>,
    pub bulk: Option<ConnectionId>,
    pub read: Option<ConnectionId>,
    pub welcome: Option<Welcome>,
    pub request: u64,
    pub vdisk: u64,
    pub epoch: u64,
    next: BTreeMap<u32, u64>,
    /// The newest stripe that it was granted.
    told_of: StripeId,
    /// Everything that is not released, with whether it is known to be mirrored.
    pub records: BTreeMap<Name, (Vec<u8>, bool)>,
    numbers: [u64; 4],
    in_flight: [Vec<(u64, Name)>; 4],
}

impl FakeHost {
    pub fn start(rig: &Rig, incarnation: u64) -> FakeHost {
        FakeHost::start_as(rig, "host-1", incarnation)
    }

    /// With another name in its certificate.
    pub fn start_as(rig: &Rig, name: &str, incarnation: u64) -> FakeHost {
        let process = rig.world.start_process(name);
        let links = process.links();
        let told = Rc::new(RefCell::new(Told::default()));
        let (polled, shared) = (Rc::clone(&links), Rc::clone(&told));
        process.set_turn(move || {
            let mut events = Vec::new();
            polled.poll(&mut events);
            let any = !events.is_empty();
            for event in events {
                match event {
                    LinkEvent::Received { connection, lane, mut message } => {
                        let header = decode_header(|count| message.take(count)).unwrap();
                        let payload = message.take_rest().to_vec();
                        if header == ControllerMessage::RoleMoves {
                            polled.close(connection, "the role moves");
                            shared.borrow_mut().closed.push(connection);
                            continue;
                        }
                        shared.borrow_mut().events.push((connection, lane, header, payload));
                    }
                    LinkEvent::Closed { connection, .. } => {
                        shared.borrow_mut().closed.push(connection);
                    }
                    _ => {}
                }
            }
            any
        });
        FakeHost {
            process,
            links,
            told,
            incarnation,
            host: 1,
            connections: 0,
            controller: 0,
            log: None,
            bulk: None,
            read: None,
            welcome: None,
            request: 0,
            vdisk: 1,
            epoch: 0,
            next: BTreeMap::new(),
            told_of: StripeId(0),
            records: BTreeMap::new(),
            numbers: [0; 4],
            in_flight: Default::default(),
        }
    }

    pub fn connect_expecting_refusal(&mut self, rig: &Rig, expected: &str) {
        let refusal = self.try_connect(rig, Class::Log).expect_err("refused");
        assert!(refusal.contains(expected), "{refusal}");
    }

    fn try_connect(&mut self, rig: &Rig, class: Class) -> Result<ConnectionId, String> {
        let connection = self.links.connect(&address(NAMES[self.controller]), class);
        self.connections += 1;
        let hello = HostMessage::Hello(Hello {
            version: WIRE_VERSION,
            cluster: CLUSTER,
            host: HostId(self.host),
            incarnation: Incarnation(self.incarnation),
            core: 0,
            connection: self.connections,
        });
        let _ = self.links.send(connection, 0, &[encode_header(&hello)]);
        let told = Rc::clone(&self.told);
        rig.world.run_until(
            || {
                let told = told.borrow();
                told.closed.contains(&connection) || told.events.iter().any(|e| e.0 == connection)
            },
            5 * SECOND,
        );
        let mut told = self.told.borrow_mut();
        let first = told.events.iter().position(|event| event.0 == connection);
        let Some(first) = first else { return Err("closed".to_owned()) };
        match told.events.remove(first).2 {
            ControllerMessage::Welcome(welcome) => {
                self.welcome = Some(welcome);
                Ok(connection)
            }
            ControllerMessage::Refused { reason, .. } => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Connects until it is welcome, then resends what is not known to be mirrored.
    pub fn connect(&mut self, rig: &Rig) {
        let connect = |host: &mut FakeHost, class| {
            for _ in 0..200 {
                if let Ok(connection) = host.try_connect(rig, class) {
                    return Some(connection);
                }
                if rig.shared {
                    host.controller = 1 - host.controller;
                }
                rig.world.run_for(Duration::from_millis(100));
            }
            panic!("not welcome by {}", NAMES[host.controller]);
        };
        self.log = connect(self, Class::Log);
        self.bulk = connect(self, Class::Bulk);
        self.read = connect(self, Class::Read);
        self.numbers = [0; 4];
        self.in_flight = Default::default();
        let lost: Vec<Name> =
            self.records.iter().filter(|(_, record)| !record.1).map(|(name, _)| *name).collect();
        for name in lost {
            self.send_record(name);
        }
    }

    pub fn is_connected(&self) -> bool {
        let told = self.told.borrow();
        let open = |c: &Option<ConnectionId>| c.is_some_and(|c| !told.closed.contains(&c));
        open(&self.log) && open(&self.bulk) && open(&self.read)
    }

    /// A new record of a slice, `data` bytes long.
    pub fn append(&mut self, slice: u32, data: usize) -> Name {
        let sequence = self.next.entry(slice).or_insert(1);
        let name = (slice, self.epoch, *sequence);
        *sequence += 1;
        let identity = RecordIdentity {
            vdisk: VdiskId(self.vdisk),
            slice: SliceIndex(slice),
            version: Version { epoch: Epoch(self.epoch), sequence: Sequence(name.2) },
            incarnation: Incarnation(self.incarnation),
        };
        let length = (data / 16 * 16).max(48) as u32;
        let entry = Entry { block: 0, kind: EntryKind::Frame, blocks: 1, length };
        let mut bytes = Vec::new();
        encode_head(&identity, &[entry], &mut bytes);
        let start = bytes.len();
        let header = FrameHeader {
            codec: Codec::Lz4,
            blocks: 1,
            payload_length: (length - 32) as u16,
            core: 0,
            key: None,
            incarnation: Incarnation(self.incarnation),
            counter: name.2,
        };
        bytes.extend(header.encode());
        bytes.extend((32..length).map(|byte| (byte as u64 ^ name.2 ^ u64::from(slice)) as u8));
        frame::seal(&mut bytes[start..]);
        self.records.insert(name, (bytes, false));
        self.send_record(name);
        name
    }

    fn send_record(&mut self, name: Name) {
        let lane = (name.0 % 4) as usize;
        let mut earlier = self.records.range((name.0, name.1, 0)..name);
        let begins = earlier.all(|(_, record)| record.1);
        self.numbers[lane] += 1;
        let number = self.numbers[lane];
        let bytes = Bytes::from(self.records[&name].0.clone());
        let record = AppendRecord { length: bytes.len() as u32, begins };
        let append = HostMessage::Append(Append { number, records: vec![record] });
        if let Some(connection) = self.log {
            let _ = self.links.send(connection, lane as u8, &[encode_header(&append), bytes]);
        }
        self.in_flight[lane].push((number, name));
    }

    /// Takes what was told, but for replies.
    pub fn look(&mut self) {
        let events = std::mem::take(&mut self.told.borrow_mut().events);
        for (connection, lane, message, payload) in events {
            match message {
                ControllerMessage::Mirrored { through } if Some(connection) == self.log => {
                    let in_flight = &mut self.in_flight[usize::from(lane)];
                    for (_, name) in in_flight.extract_if(.., |(number, _)| *number <= through) {
                        if let Some(record) = self.records.get_mut(&name) {
                            record.1 = true;
                        }
                    }
                }
                ControllerMessage::Mirrored { .. }
                | ControllerMessage::Quota { .. }
                | ControllerMessage::LostDrives { .. } => {}
                other => {
                    let mut told = self.told.borrow_mut();
                    told.events.push((connection, lane, other, payload));
                }
            }
        }
    }

    /// Runs until everything appended is known to be mirrored, connecting anew where needed.
    pub fn settle(&mut self, rig: &Rig) {
        for _ in 0..2000 {
            self.look();
            if !self.is_connected() {
                self.connect(rig);
            }
            if self.records.values().all(|record| record.1) {
                return;
            }
            rig.world.run_for(Duration::from_millis(5));
        }
        panic!("not mirrored by {}", NAMES[self.controller]);
    }

    pub fn send(&mut self, class: Class, lane: u8, parts: &[Bytes]) {
        let connection = match class {
            Class::Log => self.log,
            Class::Bulk => self.bulk,
            Class::Read => self.read,
        };
        let _ = self.links.send(connection.expect("connected"), lane, parts);
    }

    /// Asks, and runs until it is answered.
    pub fn call(
        &mut self,
        rig: &Rig,
        class: Class,
        payload: Option<Bytes>,
        make: impl FnOnce(u64) -> HostMessage,
    ) -> (ControllerMessage, Vec<u8>) {
        let request = self.ask(class, payload, make);
        self.reply(rig, request).expect("an answer")
    }

    /// Asks, and does not wait.
    pub fn ask(
        &mut self,
        class: Class,
        payload: Option<Bytes>,
        make: impl FnOnce(u64) -> HostMessage,
    ) -> u64 {
        self.request += 1;
        let mut parts = vec![encode_header(&make(self.request))];
        parts.extend(payload);
        self.send(class, 0, &parts);
        self.request
    }

    /// Runs until a request is answered.
    pub fn reply(&mut self, rig: &Rig, wanted: u64) -> Option<(ControllerMessage, Vec<u8>)> {
        let told = Rc::clone(&self.told);
        let place = move || {
            told.borrow().events.iter().position(|event| request_of(&event.2) == Some(wanted))
        };
        rig.world.run_until(|| place().is_some(), 30 * SECOND);
        let index = place()?;
        let (_, _, message, payload) = self.told.borrow_mut().events.remove(index);
        Some((message, payload))
    }

    /// Takes the vdisk with a new epoch.
    pub fn seal(&mut self, rig: &Rig) -> Result<Position, Refusal> {
        self.epoch += 1;
        self.next.clear();
        let (vdisk, epoch) = (VdiskId(self.vdisk), Epoch(self.epoch));
        // Its predecessors are dead.
        let gone: Vec<Epoch> = (0..epoch.0).map(Epoch).collect();
        let seal = |request| HostMessage::Seal { request, vdisk, epoch, gone: gone.clone() };
        match self.call(rig, Class::Log, None, seal).0 {
            ControllerMessage::Done { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Asks once for the vdisk with this epoch, and is told what of it is so.
    pub fn try_seal(&mut self, rig: &Rig, epoch: u64, gone: &[Epoch]) -> Result<Position, Refusal> {
        let (vdisk, epoch) = (VdiskId(self.vdisk), Epoch(epoch));
        let seal = |request| HostMessage::Seal { request, vdisk, epoch, gone: gone.to_vec() };
        match self.call(rig, Class::Log, None, seal).0 {
            ControllerMessage::Done { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Asks for the vdisk's read lease; gives the number of the question.
    pub fn ask_lease(&mut self) -> u64 {
        let vdisks = vec![(VdiskId(self.vdisk), Epoch(self.epoch))];
        self.ask(Class::Log, None, |request| HostMessage::Renew { request, vdisks })
    }

    /// The answer, when one came within a second: vdisks that are lost.
    pub fn lease(&mut self, rig: &Rig, question: u64) -> Option<Vec<VdiskId>> {
        rig.world.run_for(SECOND);
        let mut told = self.told.borrow_mut();
        let is_it = |event: &Event| matches!(&event.2, ControllerMessage::Renewed { request, .. } if *request == question);
        let index = told.events.iter().position(is_it)?;
        match told.events.remove(index).2 {
            ControllerMessage::Renewed { lost, .. } => Some(lost),
            _ => None,
        }
    }

    /// All unreleased records of the vdisk, as the log has them.
    pub fn fetch(&mut self, rig: &Rig) -> BTreeMap<Name, Vec<u8>> {
        let (mut found, mut from) = (BTreeMap::new(), Position(0));
        loop {
            let (vdisk, epoch) = (VdiskId(self.vdisk), Epoch(self.epoch));
            let fetch = |request| HostMessage::Fetch { request, vdisk, epoch, from };
            let (reply, payload) = self.call(rig, Class::Read, None, fetch);
            let ControllerMessage::Fetched { records, next, refused, .. } = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(refused, None);
            let mut rest = &payload[..];
            for length in records {
                let (bytes, after) = rest.split_at(length as usize);
                rest = after;
                let identity = Record::decode(bytes).unwrap().identity;
                let Version { epoch, sequence } = identity.version;
                found.insert((identity.slice.0, epoch.0, sequence.0), bytes.to_vec());
            }
            assert!(rest.is_empty());
            match next {
                Some(next) => from = next,
                None => return found,
            }
        }
    }

    /// Checks that the log has every record that this host was told is mirrored, and no wrong one.
    pub fn verify(&mut self, rig: &Rig) {
        self.look();
        let found = self.fetch(rig);
        for (name, (bytes, mirrored)) in &self.records {
            match found.get(name) {
                Some(held) => assert_eq!(held, bytes, "{name:?}"),
                None => assert!(!mirrored, "{name:?} was acknowledged and is gone"),
            }
        }
        for name in found.keys() {
            assert!(self.records.contains_key(name), "{name:?} was released and is back");
        }
    }

    pub fn grant(&mut self, rig: &Rig, stripes: u16) -> Vec<GrantedStripe> {
        let told = self.told_of;
        let grant = |request| HostMessage::Grant { request, told, stripes, identities: 0 };
        match self.call(rig, Class::Log, None, grant).0 {
            ControllerMessage::Granted { stripes, .. } => {
                self.told_of = stripes.iter().map(|granted| granted.stripe).fold(told, Ord::max);
                stripes
            }
            other => panic!("{other:?}"),
        }
    }

    /// Writes all shards of a stripe; the result of each.
    pub fn write_stripe(
        &mut self,
        rig: &Rig,
        granted: &GrantedStripe,
    ) -> Vec<Result<(), ShardFault>> {
        let stripe = granted.stripe;
        let mut requests = Vec::new();
        for (shard, place) in granted.slots.iter().enumerate() {
            self.request += 1;
            let header = HostMessage::WriteShard {
                request: self.request,
                stripe,
                shard: shard as u8,
                place: *place,
            };
            let image = Bytes::from(slot_image(granted, shard));
            self.send(Class::Bulk, 0, &[encode_header(&header), image]);
            requests.push(self.request);
        }
        let results = requests.into_iter().map(|request| match self.reply(rig, request) {
            Some((ControllerMessage::ShardWritten { result, .. }, _)) => result,
            other => panic!("{other:?}"),
        });
        results.collect()
    }

    pub fn read_shard(
        &mut self,
        rig: &Rig,
        granted: &GrantedStripe,
        shard: usize,
        range: std::ops::Range<u32>,
    ) -> Result<Vec<u8>, ShardFault> {
        let (stripe, place) = (granted.stripe, granted.slots[shard]);
        let (offset, length) = (range.start, range.end - range.start);
        let read = |request| HostMessage::Read {
            request,
            place,
            stripe,
            shard: shard as u8,
            offset,
            length,
        };
        match self.call(rig, Class::Read, None, read) {
            (ControllerMessage::Read { result, .. }, payload) => result.map(|()| payload),
            other => panic!("{other:?}"),
        }
    }

    /// What a commit of everything mirrored so far says; without a stripe's content it releases only.
    pub fn commit_message(&self, request: u64, stripe: StripeId) -> (HostMessage, Vec<Name>) {
        let names: Vec<Name> =
            self.records.iter().filter(|(_, record)| record.1).map(|(name, _)| *name).collect();
        let releases = names.iter().map(|(slice, epoch, sequence)| Release {
            slice: SliceIndex(*slice),
            epoch: Epoch(*epoch),
            first: Sequence(*sequence),
            last: Sequence(*sequence),
        });
        let part = CommitVdisk {
            vdisk: VdiskId(self.vdisk),
            epoch: Epoch(self.epoch),
            struck: false,
            in_footer: true,
            has_pieces: false,
            releases: releases.collect(),
            entries: Vec::new(),
            references: Vec::new(),
            run: None,
        };
        let vdisks = vec![part];
        (HostMessage::Commit { request, stripe, shards_missing: 0, vdisks }, names)
    }

    /// Commits a stripe, which releases everything mirrored so far.
    pub fn commit(
        &mut self,
        rig: &Rig,
        stripe: StripeId,
    ) -> (Result<Position, Refusal>, Vec<VdiskId>) {
        self.look();
        let (message, names) = self.commit_message(self.request + 1, stripe);
        match self.call(rig, Class::Log, None, |_| message).0 {
            ControllerMessage::Committed { result, struck, .. } => {
                if result.is_ok() && struck.is_empty() {
                    names.iter().for_each(|name| drop(self.records.remove(name)));
                }
                (result, struck)
            }
            other => panic!("{other:?}"),
        }
    }

    /// The stripes that the vdisk may name, as the catalog lists them.
    pub fn list(&mut self, rig: &Rig) -> Vec<StripeId> {
        let (vdisk, epoch, from) = (VdiskId(self.vdisk), Epoch(self.epoch), StripeId(0));
        let list = |request| HostMessage::ListStripes { request, vdisk, epoch, from };
        match self.call(rig, Class::Read, None, list).0 {
            ControllerMessage::Listed { stripes, next: None, refused: None, .. } => {
                stripes.iter().map(|listed| listed.stripe).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// A commit of the vdisk that says just this.
    pub fn commit_of(
        &self,
        request: u64,
        stripe: StripeId,
        references: &[StripeId],
        run: Option<MapRun>,
    ) -> HostMessage {
        let (mut message, _) = self.commit_message(request, stripe);
        if let HostMessage::Commit { vdisks, .. } = &mut message {
            vdisks[0].releases.clear();
            vdisks[0].references = references.to_vec();
            vdisks[0].run = run;
        }
        message
    }

    /// Sends it, and gives what came of it.
    pub fn committed(
        &mut self,
        rig: &Rig,
        stripe: StripeId,
        references: &[StripeId],
        run: Option<MapRun>,
    ) -> Result<Position, Refusal> {
        let message = self.commit_of(self.request + 1, stripe, references, run);
        match self.call(rig, Class::Log, None, |_| message).0 {
            ControllerMessage::Committed { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    /// Two commits, one right after the other.
    pub fn committed_together(
        &mut self,
        rig: &Rig,
        messages: [(StripeId, Vec<StripeId>, Option<MapRun>); 2],
    ) -> Vec<Result<Position, Refusal>> {
        let first = self.request + 1;
        self.request += 2;
        for (request, (stripe, references, run)) in (first..).zip(messages) {
            let message = self.commit_of(request, stripe, &references, run);
            self.send(Class::Log, 0, &[encode_header(&message)]);
        }
        let results = (first..first + 2).map(|request| match self.reply(rig, request) {
            Some((ControllerMessage::Committed { result, .. }, _)) => result,
            other => panic!("{other:?}"),
        });
        results.collect()
    }

    /// Where stripes lie.
    pub fn locate(&mut self, rig: &Rig, stripes: &[StripeId]) -> Vec<GrantedStripe> {
        let stripes = stripes.to_vec();
        let locate = |request| HostMessage::Locate { request, stripes };
        match self.call(rig, Class::Read, None, locate).0 {
            ControllerMessage::Located { stripes, .. } => stripes,
            other => panic!("{other:?}"),
        }
    }

    /// The vdisk's commits after its frontier.
    pub fn open_map(&mut self, rig: &Rig) -> Vec<MapCommit> {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let (vdisk, epoch) = (VdiskId(self.vdisk), Epoch(self.epoch));
            let open = |request| HostMessage::OpenMap { request, vdisk, epoch, cursor };
            let (reply, _) = self.call(rig, Class::Read, None, open);
            let ControllerMessage::Map { commits, next, refused, .. } = reply else {
                panic!("{reply:?}")
            };
            assert_eq!(refused, None);
            found.extend(commits);
            match next {
                Some(next) => cursor = Some(next),
                None => return found,
            }
        }
    }
}

fn request_of(message: &ControllerMessage) -> Option<u64> {
    match message {
        ControllerMessage::Done { request, .. }
        | ControllerMessage::Committed { request, .. }
        | ControllerMessage::Granted { request, .. }
        | ControllerMessage::Fetched { request, .. }
        | ControllerMessage::Map { request, .. }
        | ControllerMessage::Listed { request, .. }
        | ControllerMessage::Located { request, .. }
        | ControllerMessage::Read { request, .. }
        | ControllerMessage::ShardWritten { request, .. } => Some(*request),
        _ => None,
    }
}

/// A byte of a shard's content.
pub fn content(stripe: StripeId, shard: usize, offset: usize) -> u8 {
    (stripe.0 as usize * 31 + shard * 7 + offset / 16) as u8
}

/// A shard: content, or its parity.
pub fn shard_content(granted: &GrantedStripe, shard: usize) -> Vec<u8> {
    let data_shards = granted.data_shards();
    let plain = |shard| (0..SHARD).map(|at| content(granted.stripe, shard, at)).collect();
    let Some(parity) = shard.checked_sub(data_shards) else { return plain(shard) };
    let data: Vec<Vec<u8>> = (0..data_shards).map(plain).collect();
    let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
    let (mut first, mut second) = (vec![0; SHARD], vec![0; SHARD]);
    thread_local! {
        static ENCODER: RefCell<Encoder> = RefCell::new(Encoder::new());
    }
    ENCODER.with_borrow_mut(|encoder| encoder.encode(&data, [&mut first, &mut second]));
    if parity == 0 { first } else { second }
}

pub fn slot_image(granted: &GrantedStripe, shard: usize) -> Vec<u8> {
    let mut image = vec![0; SLOT];
    image[SLOT_HEADER..].copy_from_slice(&shard_content(granted, shard));
    let columns = column_checksums(&image[SLOT_HEADER..SLOT_HEADER + SHARD]);
    let header = SlotHeader {
        cluster: CLUSTER,
        stripe: granted.stripe,
        shard: shard as u8,
        data_shards: granted.data_shards() as u8,
        place: granted.slots[shard],
        columns,
    };
    header.encode(&mut image[..SLOT_HEADER]);
    image
}
