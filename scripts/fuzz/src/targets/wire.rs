//! Messages between engines: what decodes is encoded to the same bytes again.

use bytes::Bytes;
use cleave_format::control::{GrantedStripe, SlotPlace};
use cleave_format::encode;
use cleave_format::ids::*;
use cleave_wire::*;
use std::fmt::Debug;

/// The input is a header without its length, or a whole message.
fn message<T>(data: &[u8])
where
    T: Messages,
{
    if let Ok(header) = T::decode(data) {
        assert_eq!(header.encode(), data);
    }
    let mut source = Bytes::copy_from_slice(data);
    if let Ok(header) = T::take(&mut source) {
        let used = data.len() - source.len();
        assert_eq!(header.message(), data[..used]);
    }
}

trait Messages: Sized + PartialEq + Debug {
    fn decode(bytes: &[u8]) -> Result<Self, cleave_format::FormatError>;
    fn encode(&self) -> Vec<u8>;
    fn take(source: &mut Bytes) -> Result<Self, cleave_format::FormatError>;
    fn message(&self) -> Bytes;
}

macro_rules! messages {
    ($($name:ident),*) => {
        $(impl Messages for $name {
            fn decode(bytes: &[u8]) -> Result<Self, cleave_format::FormatError> {
                cleave_format::decode(bytes)
            }
            fn encode(&self) -> Vec<u8> {
                encode(self)
            }
            fn take(source: &mut Bytes) -> Result<Self, cleave_format::FormatError> {
                decode_header(|count| source.take(count))
            }
            fn message(&self) -> Bytes {
                encode_header(self)
            }
        })*
    };
}

messages!(HostMessage, ControllerMessage, PeerMessage);

/// From hosts.
pub(super) fn host(data: &[u8]) {
    message::<HostMessage>(data);
}

/// From controllers.
pub(super) fn controller(data: &[u8]) {
    message::<ControllerMessage>(data);
}

/// From the other controller.
pub(super) fn peer(data: &[u8]) {
    message::<PeerMessage>(data);
}

fn place() -> SlotPlace {
    SlotPlace { drive: DriveId(3), slot: SlotIndex(5), generation: 1 }
}

fn seeds<T: Messages>(messages: Vec<T>) -> Vec<Vec<u8>> {
    let whole = messages.first().map(|message| message.message().to_vec());
    messages.iter().map(Messages::encode).chain(whole).collect()
}

/// Most kinds.
pub(super) fn host_seeds() -> Vec<Vec<u8>> {
    let (request, vdisk, epoch, stripe) = (6, VdiskId(4), Epoch(2), StripeId(7));
    let records = vec![AppendRecord { length: 128, begins: true }; 2];
    let hello = Hello {
        version: WIRE_VERSION,
        cluster: ClusterId([1; 16]),
        host: HostId(1),
        incarnation: Incarnation(9),
        core: 0,
        connection: 3,
    };
    let cursor = Some(MapCursor::Commits(Position(8)));
    let commit = super::format::controls().into_iter().find_map(|control| match control {
        cleave_format::control::Control::Commit(commit) => Some(commit.vdisks),
        _ => None,
    });
    let vdisks = commit.expect("one of the records is a commit");
    seeds(vec![
        HostMessage::Hello(hello),
        HostMessage::Append(Append { number: 1, records }),
        HostMessage::Seal { request, vdisk, epoch, gone: vec![Epoch(1), epoch] },
        HostMessage::Renew { request, vdisks: vec![(vdisk, epoch); 2] },
        HostMessage::Commit { request, stripe, shards_missing: 2, vdisks },
        HostMessage::Grant { request, told: StripeId(3), stripes: 4, identities: 2 },
        HostMessage::ReturnGrant { stripes: vec![stripe; 3] },
        HostMessage::Fetch { request, vdisk, epoch, from: Position(1) },
        HostMessage::OpenMap { request, vdisk, epoch, cursor },
        HostMessage::Locate { request, stripes: vec![stripe] },
        HostMessage::Damaged { stripes: vec![stripe] },
        HostMessage::Read { request, place: place(), stripe, shard: 1, offset: 64, length: 4096 },
        HostMessage::WriteShard { request, stripe, shard: 1, place: place() },
    ])
}

/// Most kinds.
pub(super) fn controller_seeds() -> Vec<Vec<u8>> {
    let request = 6;
    let stripes = vec![GrantedStripe { stripe: StripeId(7), slots: vec![place(); 3] }];
    let commit =
        MapCommit { position: Position(8), stripe: Some(stripes[0].clone()), entries: Vec::new() };
    let welcome = Welcome {
        log: 5,
        epoch: Epoch(2),
        quota: 1 << 26,
        data_shards: 2,
        lost_drives: vec![DriveId(1)],
    };
    let (identities, lost) = (vec![StripeId(8)], Err(ShardFault::Damaged));
    seeds(vec![
        ControllerMessage::Welcome(welcome),
        ControllerMessage::Refused { reason: "another cluster".to_owned(), fatal: true },
        ControllerMessage::RoleMoves,
        ControllerMessage::Mirrored { through: 4 },
        ControllerMessage::Done { request, result: Ok(Position(8)) },
        ControllerMessage::Granted {
            request,
            stripes: stripes.clone(),
            identities,
            shortage: Some("full".to_owned()),
        },
        ControllerMessage::Fetched { request, records: vec![128, 64], next: None, refused: None },
        ControllerMessage::Map {
            request,
            frontier: Position(3),
            pieces: Vec::new(),
            commits: vec![commit],
            next: Some(MapCursor::Pieces(4)),
            refused: None,
        },
        ControllerMessage::Located { request, stripes },
        ControllerMessage::Read { request, result: lost },
        ControllerMessage::Renewed { request, lost: vec![VdiskId(3)] },
        ControllerMessage::Quota { bytes: 1 << 26 },
        ControllerMessage::LostDrives { drives: vec![DriveId(1), DriveId(2)] },
    ])
}

/// Most kinds.
pub(super) fn peer_seeds() -> Vec<Vec<u8>> {
    let entry = |position, kind| PeerEntry { position: Position(position), kind, length: 128 };
    let entries =
        vec![entry(1, PeerEntryKind::Record), entry(2, PeerEntryKind::Control { check: 7 })];
    seeds(vec![
        PeerMessage::CopyStart { log: 5, catalog: true },
        PeerMessage::CopyEnd { next: Position(9) },
        PeerMessage::CopyCatalog { last: false },
        PeerMessage::CopyEntries { entries: entries.clone() },
        PeerMessage::CopyDone,
        PeerMessage::Joined { epoch: Epoch(2), log: 5, next: Position(9) },
        PeerMessage::Forward { entries, trimmed: Position(1) },
        PeerMessage::Held { through: Position(8), catalog: Position(4) },
        PeerMessage::Want { position: Position(3) },
        PeerMessage::Vouch { number: 4 },
        PeerMessage::Vouched { number: 4 },
        PeerMessage::Prepare,
        PeerMessage::Prepared { hindrance: Some("it reaches too few drives".to_owned()) },
        PeerMessage::TakeRole,
        PeerMessage::Lent { position: Position(3), check: None },
        PeerMessage::Lent { position: Position(4), check: Some(9) },
    ])
}
