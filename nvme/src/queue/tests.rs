//! Queue pairs against the model: content, splits, depth, errors, random work.

use super::*;
use crate::dma::{DmaBuffer, Vectored};
use crate::error::IoError;
use crate::model::{Fault, ModelNamespace, ModelOptions, Scope};
use crate::spec::command::io;
use crate::spec::completion::Status;
use crate::testing::Rig;
use cleave_runtime::time::Clock;
use proptest::prelude::*;
use std::time::Duration;

fn fill(memory: &DmaBuffer, seed: u64) {
    for at in (0..memory.len()).step_by(8) {
        memory.write_u64(at, (at as u64 + 1).wrapping_mul(seed | 1));
    }
}

fn content(memory: &DmaBuffer) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes);
    bytes
}

#[test]
fn content_survives_every_size_and_split() {
    for (shift, boundary, mdts) in [(9, 0, 1), (9, 20, 5), (12, 0, 0), (12, 8, 3)] {
        let format = ModelNamespace {
            blocks: 8 << (20 - shift),
            block_shift: shift,
            optimal_boundary: boundary,
            ..ModelNamespace::default()
        };
        let rig = Rig::new(ModelOptions {
            namespaces: vec![format],
            transfer_max_shift: mdts,
            ..ModelOptions::default()
        });
        let namespace = rig.namespace(1);
        let mut pair = rig.pair(16);
        for (number, length) in [4096, 128 << 10, 1 << 20, 3 << 20].into_iter().enumerate() {
            let (first, blocks) = (3, (length >> shift) as u64);
            let memory = rig.memory(length);
            fill(&memory, number as u64 + 7);
            let want = content(&memory);
            let write = Operation::Write { first, blocks, durable: false };
            let (result, memory) = rig.do_one(&mut pair, namespace, write, memory);
            assert_eq!(result, Ok(()));
            memory.zero();
            let read = Operation::Read { first, blocks };
            let (result, memory) = rig.do_one(&mut pair, namespace, read, memory);
            assert_eq!(result, Ok(()));
            assert!(content(&memory) == want, "{length} bytes at {shift}");
            let compare = Operation::Compare { first, blocks };
            let (result, memory) = rig.do_one(&mut pair, namespace, compare, memory);
            assert_eq!(result, Ok(()));
            memory.write(length - 1, &[want[length - 1] ^ 1]);
            let (result, _) = rig.do_one(&mut pair, namespace, compare, memory);
            assert_eq!(result, Err(IoError::Status(Status::COMPARE_FAILURE)));
        }
        assert_eq!(rig.model.stray_accesses(), 0);
    }
}

#[test]
fn commands_without_data_are_split_by_their_own_limits() {
    let rig = Rig::new(ModelOptions { limits: (2, 1), ..ModelOptions::default() });
    let namespace = rig.namespace(1);
    let mut pair = rig.pair(4);
    let memory = rig.memory(4 << 20);
    fill(&memory, 3);
    let write = Operation::Write { first: 0, blocks: 1024, durable: false };
    assert_eq!(rig.do_one(&mut pair, namespace, write, memory).0, Ok(()));
    for operation in [
        Operation::WriteZeroes { first: 1, blocks: 100, deallocate: true },
        Operation::Deallocate { first: 200, blocks: 300 },
        Operation::Verify { first: 0, blocks: 1024 },
        Operation::Flush,
    ] {
        assert_eq!(rig.do_one(&mut pair, namespace, operation, rig.memory(1)).0, Ok(()));
    }
    let (result, memory) = rig.do_one(
        &mut pair,
        namespace,
        Operation::Read { first: 0, blocks: 1024 },
        rig.memory(4 << 20),
    );
    assert_eq!(result, Ok(()));
    let bytes = content(&memory);
    let zero = |block: usize| bytes[block * 4096..][..4096].iter().all(|byte| *byte == 0);
    for block in 0..1024 {
        assert_eq!(
            zero(block),
            (1..101).contains(&block) || (200..500).contains(&block),
            "{block}"
        );
    }
}

#[test]
fn what_cannot_be_carried_out_is_refused_at_once() {
    let rig = Rig::new(ModelOptions::default());
    let namespace = rig.namespace(1);
    let mut pair = rig.pair(4);
    let before = rig.model.commands();
    let mut refused =
        |operation, length| rig.do_one(&mut pair, namespace, operation, rig.memory(length)).0;
    let read = |first, blocks| Operation::Read { first, blocks };
    assert_eq!(refused(read(4096, 1), 4096), Err(IoError::Range));
    assert_eq!(refused(read(u64::MAX, 2), 8192), Err(IoError::Range));
    assert_eq!(refused(read(0, 0), 4096), Err(IoError::Range));
    assert_eq!(refused(read(0, 1), 8192), Err(IoError::Memory));
    assert_eq!(rig.model.commands(), before);
}

#[test]
fn pieces_that_do_not_meet_at_pages_need_sgls() {
    for sgl in [false, true] {
        let format = ModelNamespace { block_shift: 9, ..ModelNamespace::default() };
        let rig = Rig::new(ModelOptions { sgl, namespaces: vec![format], ..Default::default() });
        let namespace = rig.namespace(1);
        let mut pair = rig.pair(4);
        // Three pieces of pages are fine either way.
        let pieces = vec![rig.memory(4096), rig.memory(8192), rig.memory(4096)];
        for (number, piece) in pieces.iter().enumerate() {
            fill(piece, number as u64 + 5);
        }
        let want: Vec<u8> = pieces.iter().flat_map(content).collect();
        let write = Operation::Write { first: 0, blocks: 32, durable: true };
        let (result, memory) = rig.do_one(&mut pair, namespace, write, Vectored::new(pieces));
        assert_eq!(result, Ok(()));
        for (number, piece) in memory.buffers().iter().enumerate() {
            let blocks = [0u64..8, 8..24, 24..32][number].clone();
            let written: Vec<u8> = rig.model.with_media(1, |media| {
                blocks.flat_map(|block| media.read(block).to_vec()).collect()
            });
            assert_eq!(written, content(piece));
        }
        assert_eq!(want.len(), 16 << 10);
        // Parts of pages only with SGLs.
        let parts = Vectored::parts(vec![(rig.memory(4096), 512), (rig.memory(4096), 1536)]);
        let read = Operation::Read { first: 1, blocks: 4 };
        let (result, memory) = rig.do_one(&mut pair, namespace, read, parts);
        if sgl {
            assert_eq!(result, Ok(()));
            let found =
                [&content(&memory.buffers()[0])[..512], &content(&memory.buffers()[1])[..1536]];
            assert!(found.concat() == want[512..2560]);
        } else {
            assert_eq!(result, Err(IoError::Memory));
        }
        assert_eq!(pair.in_flight(), 0);
        assert_eq!(rig.model.stray_accesses(), 0);
    }
}

#[test]
fn errors_come_back_with_their_request_and_splits_fail_whole() {
    let rig = Rig::new(ModelOptions { transfer_max_shift: 1, ..ModelOptions::default() });
    let namespace = rig.namespace(1);
    let mut pair = rig.pair(2);
    let scope = |opcode, after| Scope { admin: false, opcode, after, count: 1 };
    rig.model.inject(Fault::Fail(scope(io::READ, 3), Status::UNRECOVERED_READ));
    let read = Operation::Read { first: 0, blocks: 64 };
    let (result, memory) = rig.do_one(&mut pair, namespace, read, rig.memory(64 * 4096));
    assert_eq!(result, Err(IoError::Status(Status::UNRECOVERED_READ)));
    let (result, _) = rig.do_one(&mut pair, namespace, read, memory);
    assert_eq!(result, Ok(()));
    rig.model.inject(Fault::Fail(scope(io::FLUSH, 0), Status::INTERNAL));
    let (result, _) = rig.do_one(&mut pair, namespace, Operation::Flush, rig.memory(1));
    assert_eq!(result, Err(IoError::Status(Status::INTERNAL)));
    assert_eq!(pair.in_flight(), 0);
}

#[test]
fn protection_is_generated_and_checked() {
    for protection in 1..=3 {
        let format = ModelNamespace { protection, ..ModelNamespace::default() };
        let rig = Rig::new(ModelOptions { namespaces: vec![format], ..Default::default() });
        let namespace = rig.namespace(1);
        let mut pair = rig.pair(4);
        let write = Operation::Write { first: 7, blocks: 100, durable: false };
        let (result, memory) = rig.do_one(&mut pair, namespace, write, rig.memory(100 * 4096));
        assert_eq!(result, Ok(()));
        let read = Operation::Read { first: 7, blocks: 100 };
        let (result, memory) = rig.do_one(&mut pair, namespace, read, memory);
        assert_eq!(result, Ok(()));
        let verify = Operation::Verify { first: 7, blocks: 100 };
        let (result, memory) = rig.do_one(&mut pair, namespace, verify, memory);
        assert_eq!(result, Ok(()));
        let compare = Operation::Compare { first: 7, blocks: 100 };
        let (result, memory) = rig.do_one(&mut pair, namespace, compare, memory);
        assert_eq!(result, Err(IoError::Unsupported));
        let zeroes = Operation::WriteZeroes { first: 7, blocks: 100, deallocate: false };
        let (result, memory) = rig.do_one(&mut pair, namespace, zeroes, memory);
        assert_eq!(result, Ok(()));
        rig.model.with_media(1, |media| media.spoil(80));
        let (result, _) = rig.do_one(&mut pair, namespace, read, memory);
        assert_eq!(result, Err(IoError::Status(Status::GUARD_CHECK)), "type {protection}");
    }
}

#[test]
fn one_doorbell_tells_of_a_batch() {
    let rig = Rig::new(ModelOptions { pairs: 1, ..ModelOptions::default() });
    let namespace = rig.namespace(1);
    let mut pair = rig.pair(64);
    for token in 0..64 {
        let operation = Operation::Read { first: token, blocks: 1 };
        let request = Request { token, namespace, operation, memory: rig.memory(4096) };
        pair.submit(rig.clock.now(), request).unwrap();
    }
    assert_eq!(pair.doorbells(), 0);
    pair.ring();
    assert_eq!(pair.doorbells(), 1);
    let mut tokens: Vec<u64> = rig.wait(&mut pair, 64).iter().map(|done| done.token).collect();
    assert!(!tokens.is_sorted(), "the model reorders");
    tokens.sort_unstable();
    assert_eq!(tokens, (0..64).collect::<Vec<_>>());
    // Completions are acknowledged only when the controller needs their places.
    assert_eq!(pair.doorbells(), 1);
    for _ in 0..1000 {
        let read = Operation::Read { first: 0, blocks: 1 };
        assert_eq!(rig.do_one(&mut pair, namespace, read, rig.memory(4096)).0, Ok(()));
    }
    assert!((1001..1020).contains(&pair.doorbells()), "{} doorbells", pair.doorbells());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Read(u64, u64),
    Zeroes(u64, u64),
    Flush,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0u64..60, 1u64..12);
    prop_oneof![
        range().prop_map(|(first, blocks)| Step::Write(first, blocks)),
        range().prop_map(|(first, blocks)| Step::Read(first, blocks)),
        range().prop_map(|(first, blocks)| Step::Zeroes(first, blocks)),
        Just(Step::Flush),
        Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any work at any depth gives what an array gives, as long as requests that overlap do not
    /// overtake each other: the test waits before them.
    #[test]
    fn work_of_any_kind_acts_as_an_array(
        steps in proptest::collection::vec(step(), 1..60),
        depth in 1u16..20,
        mdts in 0u8..3,
        boundary in 0u16..9,
        entries in 2u16..30,
        seed: u64,
    ) {
        let format = ModelNamespace {
            blocks: 72,
            optimal_boundary: boundary,
            ..ModelNamespace::default()
        };
        let rig = Rig::new(ModelOptions {
            namespaces: vec![format],
            transfer_max_shift: mdts,
            queue_entries: entries,
            latency: (Duration::ZERO, Duration::from_micros(100)),
            seed,
            ..ModelOptions::default()
        });
        let namespace = rig.namespace(1);
        let mut pair: QueuePair<DmaBuffer> = rig.pair(depth);
        let mut model = vec![0u64; 72];
        let mut busy: Vec<(u64, u64, u64)> = Vec::new();
        let mut wanted: std::collections::BTreeMap<u64, Vec<u64>> = Default::default();
        for (token, step) in (1u64..).zip(steps) {
            let (first, blocks) = match step {
                Step::Write(first, blocks) | Step::Read(first, blocks) | Step::Zeroes(first, blocks) => (first, blocks),
                Step::Flush | Step::Wait => (0, 0),
            };
            let collides = |(_, other, length): &(u64, u64, u64)| {
                first < other + length && *other < first + blocks
            };
            let full = !pair.has_room();
            if full || matches!(step, Step::Wait) || busy.iter().any(collides) {
                let count = pair.in_flight();
                for done in rig.wait(&mut pair, count) {
                    prop_assert_eq!(done.result, Ok(()));
                    busy.retain(|(token, ..)| *token != done.token);
                    if let Some(want) = wanted.remove(&done.token) {
                        let found: Vec<u64> =
                            (0..want.len()).map(|block| done.memory.read_u64(block * 4096)).collect();
                        prop_assert_eq!(found, want);
                    }
                }
                prop_assert!(busy.is_empty() && pair.in_flight() == 0);
            }
            let memory = rig.memory((blocks as usize).max(1) * 4096);
            let range = first as usize..(first + blocks) as usize;
            let operation = match step {
                Step::Write(..) => {
                    for (place, block) in range.enumerate() {
                        memory.write_u64(place * 4096, token << 8 | block as u64);
                        model[block] = token << 8 | block as u64;
                    }
                    Operation::Write { first, blocks, durable: false }
                }
                Step::Read(..) => {
                    wanted.insert(token, model[range].to_vec());
                    Operation::Read { first, blocks }
                }
                Step::Zeroes(..) => {
                    model[range].fill(0);
                    Operation::WriteZeroes { first, blocks, deallocate: false }
                }
                Step::Flush => Operation::Flush,
                Step::Wait => continue,
            };
            busy.push((token, first, blocks));
            let request = Request { token, namespace, operation, memory };
            prop_assert!(pair.submit(rig.clock.now(), request).is_ok());
        }
        let count = pair.in_flight();
        for done in rig.wait(&mut pair, count) {
            prop_assert_eq!(done.result, Ok(()));
        }
        prop_assert_eq!(rig.model.stray_accesses(), 0);
    }
}
