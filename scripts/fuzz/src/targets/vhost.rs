//! A vdisk's device against front ends and guests that mean harm: it serves or refuses them, and every request
//! that it takes lies within the vdisk.

use super::vhost_rig::{AVAILABLE, GUEST, MEMORY, RING_BYTES, RINGS, Rig, SIZE, USER, address};
use super::vhost_rig::{code, event, memory};
use crate::input::Input;
use std::os::fd::OwnedFd;

/// Most messages of an input: more of them try nothing new.
const MESSAGES_MAX: usize = 64;

/// Messages of the front end. A first byte says how far the connection is set up. Then each message has a
/// control byte (bits 0-1 descriptors, 2-3 which, 4 wants a reply, 5 a body in place of numbers, 6 other flags,
/// 7 bytes as they are), a code, and its body.
pub(super) fn messages(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::connect();
    let stage = input.byte();
    let set_up = |rig: &mut Rig| {
        if stage & 1 != 0 {
            rig.negotiate(u64::from(stage >> 2 & 1) << 29 | u64::from(stage >> 3 & 1) << 26);
        }
        if stage & 2 != 0 {
            rig.start();
        }
    };
    set_up(&mut rig);
    let files: [OwnedFd; 4] = [event(), memory(MEMORY), memory(100), event()];
    for _ in 0..MESSAGES_MAX {
        if input.is_empty() {
            break;
        }
        let control = input.byte();
        let (count, first) = (usize::from(control & 3), usize::from(control >> 2 & 3));
        let given: Vec<&OwnedFd> = files.iter().cycle().skip(first).take(count).collect();
        if control & 0x80 != 0 {
            let length = usize::from(input.byte());
            rig.send_raw(input.bytes(length), &given);
        } else {
            let mut flags = 1 | u32::from(control >> 4 & 1) << 3;
            if control & 0x40 != 0 {
                flags = input.byte().into();
            }
            let request = u32::from(input.byte());
            let body = body(&mut input, control & 0x20 != 0);
            rig.send(request, flags, &body, &given);
        }
        if rig.hung_up() {
            rig.reconnect();
            set_up(&mut rig);
        }
    }
}

/// A body of bytes as they are, or of numbers that mean something more often.
fn body(input: &mut Input<'_>, raw: bool) -> Vec<u8> {
    let length = input.byte();
    if raw {
        return input.bytes(length.into()).to_vec();
    }
    let mut body = Vec::new();
    for _ in 0..length % 12 {
        let kind = input.byte();
        match kind >> 5 {
            0 => body.extend_from_slice(&u32::from(kind & 0x1f).to_ne_bytes()),
            1 => body.extend_from_slice(&u64::from(kind & 0x1f).to_ne_bytes()),
            2 => body.extend_from_slice(&(GUEST + (u64::from(kind & 0x1f) << 12)).to_ne_bytes()),
            3 => body.extend_from_slice(&(USER + (u64::from(kind & 0x1f) << 10)).to_ne_bytes()),
            4 => body.extend_from_slice(&(1_u64 << (kind & 0x1f) << 9).to_ne_bytes()),
            5 => body.extend_from_slice(&(1_u32 << (kind & 0x1f)).to_ne_bytes()),
            6 => body.extend_from_slice(&input.long().to_ne_bytes()),
            _ => body.extend_from_slice(&input.word().to_ne_bytes()),
        }
    }
    body
}

/// Set-ups in other orders, descriptors where none belong, questions.
pub(super) fn messages_seeds() -> Vec<Vec<u8>> {
    // A number of the body: small u32, small u64.
    let (word, long) = (|value: u8| value, |value: u8| 0x20 | value);
    let ask = |code: u8| vec![0x10, code, 0];
    let state = |code: u32, ring: u8, value: u8| vec![0x10, code as u8, 2, word(ring), word(value)];
    let questions: Vec<u8> = [1, 3, 15, 17, 36].into_iter().flat_map(ask).collect();
    let features = vec![0, 2, 1, 0xc0, 0, 0, 0, 0x40, 1, 0, 0, 0];
    let region = |code: u8| {
        // Padding, guest address, size 1 << 17, user address, offset.
        [vec![1 | 1 << 2, code, 5, long(0), 0x40, 0x80 | 8, 0x60, long(0)]].concat()
    };
    // A table of one region: count and padding, then the region.
    let table = vec![1 | 1 << 2, 5, 6, word(1), word(0), 0x40, 0x80 | 8, 0x60, long(0)];
    let ring: Vec<u8> = [
        state(code::SET_VRING_NUM, 0, 16),
        state(code::SET_VRING_BASE, 0, 3),
        vec![0, 9, 6, word(0), word(0), 0x60, 0x62, 0x61, long(0)],
        vec![1, 13, 1, long(0)],
        vec![1, 12, 1, long(0)],
        state(code::SET_VRING_ENABLE, 0, 1),
        state(11, 0, 0),
    ]
    .concat();
    let config = vec![0x30, 24, 20, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let inflight = vec![0x10, 31, 3, long(0), long(0), 0xe0, 2, 0, 16, 0];
    // Log memory: size and offset.
    let log = vec![0x10 | 1 | 1 << 2, 6, 2, 0x80 | 8, long(0)];
    vec![
        [vec![0], questions.clone(), features, region(37), ring.clone()].concat(),
        [vec![1], ring.clone(), config, table].concat(),
        [vec![3], questions, state(11, 0, 0), state(11, 1, 0), region(38)].concat(),
        [vec![0xf], inflight, log, region(37), region(38), ring].concat(),
        vec![0, 0x80, 12, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        vec![0, 0x83, 4, 1, 0, 0, 0, 0x83, 8, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
}

/// Descriptor chains. A first byte chooses features; then operations until the end: a descriptor of a ring, a
/// descriptor in memory (for indirect tables), a request's header in memory, raw bytes, a head to offer.
pub(super) fn chains(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::connect();
    let features = input.byte();
    // Indirect descriptors and event indices.
    rig.negotiate(u64::from(features & 1) << 28 | u64::from(features >> 1 & 1) << 29);
    rig.start();
    let mut offered = [0_u16; RINGS as usize];
    while !input.is_empty() {
        let operation = input.byte();
        let ring = u16::from(operation >> 3 & 1);
        match operation & 7 {
            0..=2 => {
                let index = u64::from(input.byte() % SIZE as u8);
                let descriptor = descriptor(&mut input);
                rig.describe(u64::from(ring) * RING_BYTES + 16 * index, descriptor);
            }
            3 => {
                let at = address(&mut input).wrapping_sub(GUEST);
                let descriptor = descriptor(&mut input);
                rig.describe(at, descriptor);
            }
            4 => {
                let at = address(&mut input).wrapping_sub(GUEST);
                let kind = u32::from(input.byte());
                let sector = u64::from(input.half());
                let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
                rig.write(at, &header);
            }
            5 => {
                let at = u64::from(input.half());
                let length = usize::from(input.byte());
                rig.write(at, input.bytes(length));
            }
            _ => {
                let head = u16::from(input.byte());
                // One in sixteen is no index at all.
                let head = if head < 0xf0 { head % SIZE } else { head << 8 | head };
                let count = &mut offered[usize::from(ring)];
                rig.offer(ring, *count, head);
                *count = count.wrapping_add(1);
                rig.turn();
            }
        }
    }
    rig.turn();
    let served = rig.disk.statistics();
    assert!(served.faults <= u64::from(RINGS), "a ring stops once");
}

fn descriptor(input: &mut Input<'_>) -> (u64, u32, u16, u16) {
    let address = address(input);
    let shape = input.byte();
    let length = match shape & 7 {
        0 => 16,
        1 => 1,
        2 => 512,
        3 => 4096,
        4 => u32::from(input.byte()),
        5 => 16 * u32::from(input.byte()),
        6 => input.word(),
        _ => 512 * u32::from(input.byte()),
    };
    let flags = match shape >> 3 {
        0x1f => input.half(),
        flags => u16::from(flags & 7),
    };
    (address, length, flags, u16::from(input.byte() % (SIZE as u8 + 1)))
}

/// Requests of all kinds, through rings and indirect tables.
pub(super) fn chains_seeds() -> Vec<Vec<u8>> {
    const NEXT: u8 = 1 << 3;
    const WRITE: u8 = 2 << 3;
    const INDIRECT: u8 = 4 << 3;
    let at = |at: u32| at.to_le_bytes().to_vec();
    let descriptor = |index: u8, place: u32, shape: u8, more: &[u8], next: u8| {
        [vec![0, index], at(place), vec![shape], more.to_vec(), vec![next]].concat()
    };
    let header = |kind: u8, sector: u16| {
        [vec![4], at(0x8000), vec![kind], sector.to_le_bytes().to_vec()].concat()
    };
    let request = |kind: u8, sector, shape| {
        [
            header(kind, sector),
            descriptor(0, 0x8000, NEXT, &[], 1),
            descriptor(1, 0x9000, NEXT | shape, &[], 2),
            descriptor(2, 0x8100, WRITE | 1, &[], 0),
            vec![6, 0],
        ]
        .concat()
    };
    // Discard and write-zeroes have ranges: sector, sectors, flags.
    let range = vec![5, 0, 0x90, 16, 8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let flush = [
        header(4, 0),
        descriptor(0, 0x8000, NEXT, &[], 1),
        descriptor(1, 0x8100, WRITE | 1, &[], 0),
        vec![6, 0],
    ]
    .concat();
    let indirect = [
        header(0, 8),
        [vec![3], at(0xa000), at(0x8000), vec![NEXT], vec![1]].concat(),
        [vec![3], at(0xa010), at(0x9000), vec![NEXT | WRITE | 3], vec![2]].concat(),
        [vec![3], at(0xa020), at(0x8100), vec![WRITE | 1], vec![0]].concat(),
        descriptor(0, 0xa000, INDIRECT | 5, &[3], 0),
        vec![6, 0],
    ]
    .concat();
    let seeds = [
        request(0, 8, WRITE | 3),
        request(1, 8, 3),
        request(8, 0, WRITE | 2),
        [range.clone(), request(11, 0, 0)].concat(),
        [range, request(13, 0, 0)].concat(),
        [request(1, 2047, 3), request(0, 0, WRITE | 2)].concat(),
        flush,
        indirect,
    ];
    let mut seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| [&[3], &seed[..]].concat()).collect();
    seeds.push(
        [&[3], &seeds.iter().flat_map(|seed| &seed[1..]).copied().collect::<Vec<u8>>()[..]]
            .concat(),
    );
    seeds
}

/// Inflight regions that a front end gives back: shape of the region, then its bytes. The rings hold three
/// requests each, which the region may say were in flight.
pub(super) fn inflight(data: &[u8]) {
    let mut input = Input(data);
    let mut rig = Rig::connect();
    rig.negotiate(0);
    for ring in 0..RINGS {
        for number in 0..3 {
            let base = 0x8000 + u64::from(ring) * 0x4000 + u64::from(number) * 0x1000;
            let descriptors = u64::from(ring) * RING_BYTES + 48 * u64::from(number);
            let head = 3 * number;
            rig.write(base, &1_u32.to_le_bytes());
            rig.describe(descriptors, (GUEST + base, 16, 1, head + 1));
            rig.describe(descriptors + 16, (GUEST + base + 512, 512, 1, head + 2));
            rig.describe(descriptors + 32, (GUEST + base + 16, 1, 2, 0));
            rig.offer(ring, number, head);
        }
    }
    let used = input.half();
    rig.write(AVAILABLE * 2 + 2, &used.to_le_bytes());
    let shape = input.byte();
    let (mut size, mut offset) = (1024_u64, 0_u64);
    let (mut queues, mut queue_size) = (RINGS, SIZE);
    if shape & 1 != 0 {
        size = input.half().into();
    }
    if shape & 2 != 0 {
        offset = input.half().into();
    }
    if shape & 4 != 0 {
        (queues, queue_size) = (input.half(), input.half());
    }
    if shape & 8 != 0 {
        (size, offset) = (input.long(), input.long());
    }
    let region = memory(8192);
    rustix::io::pwrite(&region, &input.0[..input.0.len().min(8192)], 0).expect("it is memory");
    let mut body = [size, offset].map(u64::to_ne_bytes).concat();
    body.extend_from_slice(&queues.to_ne_bytes());
    body.extend_from_slice(&queue_size.to_ne_bytes());
    // The message's structure has padding at its end.
    body.resize(24, 0);
    for length in [20, 24] {
        rig.send(code::SET_INFLIGHT_FD, 1, &body[..length], &[&region]);
        if !rig.hung_up() {
            break;
        }
        rig.reconnect();
        rig.negotiate(0);
    }
    rig.start();
    rig.turn();
}

/// Regions that were never used, of which one says that requests were in flight, and ones of other shapes.
pub(super) fn inflight_seeds() -> Vec<Vec<u8>> {
    let part = |used: u8, last: u8, heads: &[(usize, u8)]| {
        let mut part = vec![0; 320];
        (part[8], part[10], part[12], part[14]) = (1, SIZE as u8, last, used);
        for (head, counter) in heads {
            (part[16 + 16 * head], part[16 + 16 * head + 8]) = (1, *counter);
        }
        part
    };
    let seed = |used: u8, shape: &[u8], parts: [Vec<u8>; 2]| {
        let mut seed = [&[used, 0], shape, &parts.concat()[..]].concat();
        let end = seed.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        seed.truncate(end);
        seed
    };
    let empty = || part(0, 0, &[]);
    vec![
        vec![0, 0, 0],
        seed(0, &[0], [empty(), empty()]),
        seed(0, &[0], [part(0, 0, &[(0, 1), (3, 2)]), part(0, 0, &[(6, 3)])]),
        seed(1, &[0], [part(0, 3, &[(0, 1), (3, 2)]), empty()]),
        seed(0, &[4, 1, 0, 16, 0], [part(0, 0, &[(6, 1)]), Vec::new()]),
        seed(0, &[3, 0, 4, 0, 0], [part(0, 20, &[(15, 1)]), empty()]),
    ]
}
