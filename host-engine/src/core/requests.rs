//! A guest's request on its way through the core: taken from the device, given to the front, and answered once when that
//! is done with it.

use crate::measure::Kind;
use cleave_host_core::Operation;
use cleave_host_core::front::{Data, Done};
use cleave_runtime::time::Moment;
use cleave_vhost_user::{BlockRange, Outcome, Request, RequestKind, Tag};

/// A request that was taken and not answered.
#[derive(Debug)]
pub struct Taken {
    /// Place of its vdisk among those of the core.
    pub place: usize,
    /// The device's name for it.
    pub tag: Tag,
    /// What it is.
    pub kind: Kind,
    /// Bytes that it covers.
    pub bytes: u64,
    /// When it was taken.
    pub since: Moment,
}

/// What a device's request is to the core: an operation for each of its ranges.
pub fn split(
    request: Request,
    place: usize,
    since: Moment,
) -> (Taken, impl Iterator<Item = Operation>) {
    let all = |ranges: &[BlockRange]| ranges.iter().map(|range| range.length).sum();
    let (kind, bytes) = match &request.kind {
        RequestKind::Read { length, .. } => (Kind::Read, u64::from(*length)),
        RequestKind::Write { data, .. } => (Kind::Write, data.len() as u64),
        RequestKind::Flush => (Kind::Flush, 0),
        RequestKind::Discard { ranges } => (Kind::Discard, all(ranges)),
        RequestKind::WriteZeroes { ranges } => (Kind::WriteZeroes, all(ranges)),
    };
    let (one, ranges) = match request.kind {
        RequestKind::Read { offset, length } => {
            (Some(Operation::Read { offset, length }), Vec::new())
        }
        RequestKind::Write { offset, data } => {
            (Some(Operation::Write { offset, data }), Vec::new())
        }
        RequestKind::Flush => (Some(Operation::Flush), Vec::new()),
        RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => (None, ranges),
    };
    let discard = kind == Kind::Discard;
    let of_range = move |BlockRange { offset, length, unmap }| match discard {
        true => Operation::Discard { offset, length },
        false => Operation::WriteZeroes { offset, length, unmap },
    };
    let taken = Taken { place, tag: request.tag, kind, bytes, since };
    (taken, one.into_iter().chain(ranges.into_iter().map(of_range)))
}

/// Hands the outcome to the device's own function.
pub fn answer(done: &Done<Taken>, mut tell: impl FnMut(Tag, Outcome<'_>)) {
    let (tag, data): (Tag, &Data) = (done.user.tag, &done.data);
    if done.result.is_err() {
        return tell(tag, Outcome::Failed);
    }
    if done.user.kind != Kind::Read {
        return tell(tag, Outcome::Done);
    }
    match data.buffers().next() {
        Some(whole) if data.is_whole() => tell(tag, Outcome::Read(&[whole])),
        _ => {
            let buffers: Vec<&[u8]> = data.buffers().map(|buffer| &buffer[..]).collect();
            tell(tag, Outcome::Read(&buffers));
        }
    }
}
