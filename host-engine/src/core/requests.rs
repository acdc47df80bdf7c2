//! A guest's request on its way through the core: taken from the device, given to the core in as
//! many pieces as that wants, and answered once when the last one is done.

use crate::measure::Kind;
use cleave_format::ids::VdiskId;
use cleave_host_core::{GuestRequest, Operation};
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::time::Moment;
use cleave_vhost_user::{Outcome, Request, RequestKind, Tag};

/// A request that was taken and not answered.
#[derive(Debug)]
pub struct Taken {
    /// Place of its vdisk among those of the core, and which one that was.
    pub place: (usize, u64),
    /// The device's name for it.
    pub tag: Tag,
    /// What it is.
    pub kind: Kind,
    /// Bytes that it covers.
    pub bytes: u64,
    /// When it was taken.
    pub since: Moment,
    /// Pieces not done.
    pub left: u32,
    /// A piece failed.
    pub failed: bool,
    /// The vdisk was taken away from the core: the guest is not to be told anything.
    pub void: bool,
    /// A read's data.
    pub data: Option<Buffer>,
}

/// What a device's request is to the core; `pieces` get one request each.
pub fn split(
    request: Request,
    place: (usize, u64),
    vdisk: VdiskId,
    since: Moment,
    name: impl FnOnce(Taken) -> Token,
    pieces: &mut Vec<GuestRequest>,
) {
    let (kind, bytes, left) = match &request.kind {
        RequestKind::Read { length, .. } => (Kind::Read, u64::from(*length), 1),
        RequestKind::Write { data, .. } => (Kind::Write, data.len() as u64, 1),
        RequestKind::Flush => (Kind::Flush, 0, 1),
        RequestKind::Discard { ranges } => {
            let bytes = ranges.iter().map(|range| range.length).sum();
            (Kind::Discard, bytes, ranges.len() as u32)
        }
        RequestKind::WriteZeroes { ranges } => {
            let bytes = ranges.iter().map(|range| range.length).sum();
            (Kind::WriteZeroes, bytes, ranges.len() as u32)
        }
    };
    assert!(left > 0, "the device gives at least one range");
    let tag = request.tag;
    let (failed, void, data) = (false, false, None);
    let token = name(Taken { place, tag, kind, bytes, since, left, failed, void, data });
    let piece = |operation| GuestRequest { token, vdisk, operation };
    match request.kind {
        RequestKind::Read { offset, length } => {
            pieces.push(piece(Operation::Read { offset, length }));
        }
        RequestKind::Write { offset, data } => {
            pieces.push(piece(Operation::Write { offset, data }));
        }
        RequestKind::Flush => pieces.push(piece(Operation::Flush)),
        RequestKind::Discard { ranges } => {
            pieces.extend(ranges.iter().map(|range| {
                piece(Operation::Discard { offset: range.offset, length: range.length })
            }));
        }
        RequestKind::WriteZeroes { ranges } => {
            pieces.extend(ranges.iter().map(|range| {
                let (offset, length, unmap) = (range.offset, range.length, range.unmap);
                piece(Operation::WriteZeroes { offset, length, unmap })
            }));
        }
    }
}

impl Taken {
    /// Hands the outcome to the device's own function.
    pub fn answer(&self, tell: impl FnOnce(Tag, Outcome<'_>)) {
        match &self.data {
            _ if self.failed => tell(self.tag, Outcome::Failed),
            Some(data) => tell(self.tag, Outcome::Read(&[data])),
            None => tell(self.tag, Outcome::Done),
        }
    }
}
