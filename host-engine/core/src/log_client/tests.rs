//! Appends over links that a test looks into.

use super::*;
use crate::buffer::Record;
use cleave_format::ids::{Epoch, Incarnation, Version};
use cleave_format::record::{Entry, EntryKind, RecordIdentity};
use cleave_runtime::links::{Class, LinkEvent, PeerAddress, SendError};
use cleave_runtime::time::Moment;
use cleave_wire::decode_header;
use std::cell::RefCell;

#[derive(Default)]
struct Wire(RefCell<Vec<(u8, Append, usize)>>);

impl Links for Wire {
    fn connect(&self, _: &PeerAddress, _: Class) -> ConnectionId {
        unreachable!()
    }
    fn send(&self, _: ConnectionId, lane: u8, parts: &[Bytes]) -> Result<(), SendError> {
        let mut head = parts[0].clone();
        let header = decode_header(|count| cleave_wire::Source::take(&mut head, count)).unwrap();
        let HostMessage::Append(append) = header else { panic!("appends only") };
        let bytes = parts[1..].iter().map(Bytes::len).sum();
        self.0.borrow_mut().push((lane, append, bytes));
        Ok(())
    }
    fn queued(&self, _: ConnectionId) -> usize {
        0
    }
    fn close(&self, _: ConnectionId, _: &str) {}
    fn poll(&self, _: &mut Vec<LinkEvent>) {}
}

struct Rig {
    wire: Wire,
    buffer: WriteBuffer,
    sequences: Sequences,
    client: LogClient,
}

impl Rig {
    fn take(&mut self, disk: u64, slice: u32, blocks: u16) -> RecordKey {
        let (vdisk, slice) = (VdiskId(disk), SliceIndex(slice));
        let sequence = self.sequences.take(vdisk, slice);
        let version = Version { epoch: Epoch(1), sequence };
        let identity = RecordIdentity { vdisk, slice, version, incarnation: Incarnation(1) };
        let entry = |block| Entry { block, kind: EntryKind::Frame, blocks: 1, length: 4160 };
        let entries: Vec<Entry> = (0..blocks).map(entry).collect();
        let data = Bytes::from(vec![0; usize::from(blocks) * 4160]);
        let record = Record::new(identity, data, &entries, Moment(0));
        let key = self.buffer.insert(record, |_| true);
        self.client.push(slice, key);
        key
    }

    fn flush(&mut self) -> Vec<(u8, u64, Vec<bool>)> {
        self.client.flush(&self.wire, &self.buffer, &self.sequences);
        let sent = self.wire.0.take();
        for (_, append, bytes) in &sent {
            let announced: usize = append.records.iter().map(|r| r.length as usize).sum();
            assert_eq!(announced, *bytes);
            assert!(append.records.len() == 1 || *bytes <= APPEND_BYTES_MAX);
        }
        let begins = |append: Append| append.records.iter().map(|r| r.begins).collect();
        sent.into_iter().map(|(lane, append, _)| (lane, append.number, begins(append))).collect()
    }

    fn mirrored(&mut self, lane: u8, through: u64) -> usize {
        let mut keys = Vec::new();
        self.client.mirrored(lane, through, &mut keys);
        for key in &keys {
            let identity = self.buffer.get(*key).unwrap().identity;
            let sequence = identity.version.sequence;
            self.sequences.mirrored(identity.vdisk, identity.slice, sequence);
        }
        keys.len()
    }
}

fn rig() -> Rig {
    Rig {
        wire: Wire::default(),
        buffer: WriteBuffer::default(),
        sequences: Sequences::default(),
        client: LogClient::default(),
    }
}

#[test]
fn records_are_batched_by_lane_and_vdisk() {
    let mut rig = rig();
    rig.take(1, 0, 1);
    rig.take(1, 4, 1);
    rig.take(2, 0, 1);
    rig.take(1, 1, 1);
    assert!(rig.flush().is_empty(), "not before there is a connection");
    rig.client.connected(ConnectionId(1));
    let sent = rig.flush();
    assert_eq!(sent, [(0, 1, vec![true, true]), (0, 2, vec![true]), (1, 1, vec![true])]);
    assert!(rig.flush().is_empty());
    // Large ones go in several.
    for _ in 0..5 {
        rig.take(1, 2, 100);
    }
    let sent = rig.flush();
    assert_eq!(sent.len(), 3);
    assert_eq!(sent[0], (2, 1, vec![true, false]));
}

// C1: what is not mirrored is sent again in order, and begins its slice when all before it is mirrored.
#[test]
fn a_broken_connection_resends_what_is_not_mirrored() {
    let mut rig = rig();
    rig.client.connected(ConnectionId(1));
    rig.take(1, 0, 1);
    assert_eq!(rig.flush(), [(0, 1, vec![true])]);
    rig.take(1, 0, 1);
    rig.take(1, 0, 1);
    assert_eq!(rig.flush(), [(0, 2, vec![false, false])]);
    rig.take(1, 0, 1);
    assert_eq!(rig.mirrored(0, 1), 1);
    rig.client.disconnected();
    assert!(rig.flush().is_empty());
    rig.client.connected(ConnectionId(2));
    assert_eq!(rig.flush(), [(0, 1, vec![true, false, false])]);
    assert_eq!(rig.mirrored(0, 1), 3);
    rig.take(1, 0, 1);
    assert_eq!(rig.flush(), [(0, 2, vec![true])]);
}

#[test]
fn records_of_a_closed_vdisk_are_not_sent() {
    let mut rig = rig();
    rig.take(1, 0, 1);
    let other = rig.take(2, 0, 1);
    rig.buffer.forget(VdiskId(1));
    rig.client.connected(ConnectionId(1));
    assert_eq!(rig.flush(), [(0, 1, vec![true])]);
    assert_eq!(rig.client.refused(0, 1), Some(other));
    assert_eq!(rig.client.refused(0, 2), None);
}
