//! The order in which guests are told (C23), where a model that draws at random rarely looks.

use crate::rig::{DISK, Rig};
use cleave_host_core::*;
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use std::time::Duration;

const SIZE: u64 = 9 << 20;
const SLICE: u64 = 2 << 20;

fn write(offset: u64, length: usize, seed: u64) -> Operation {
    let random = SplitMix::new(seed);
    let mut data = Buffer::new(length);
    data.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    Operation::Write { offset, data }
}

/// Submits all at once, in order, as requests 1, 2, ...; gives the order of the completions.
fn told(rig: &Rig, operations: Vec<Operation>) -> Vec<Token> {
    let core = rig.core();
    let count = operations.len();
    for (index, operation) in operations.into_iter().enumerate() {
        core.submit(GuestRequest { token: index as u64 + 1, vdisk: DISK, operation }).unwrap();
    }
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let all = || {
        core.completions(&mut completions);
        completions.len() == count
    };
    assert!(rig.world.run_until(all, Duration::from_secs(20)), "every request ends");
    assert!(completions.iter().all(|completion| completion.result == Ok(())));
    completions.iter().map(|completion| completion.token).collect()
}

// C23: a discard's place in the order follows the range that the guest asked for, not what is
// left of it when it is rounded inward (C6).
#[test]
fn a_discard_that_rounds_to_nothing_does_not_overtake() {
    let mut rig = Rig::new(50, SIZE);
    rig.start_host();
    rig.open();
    let discard = Operation::Discard { offset: 512, length: 1024 };
    assert_eq!(told(&rig, vec![write(0, 4096, 1), discard]), [1, 2]);
}

// C23: nor is it overtaken at the edge that rounding takes from it.
#[test]
fn a_later_write_does_not_overtake_a_discard_at_its_rounded_edge() {
    let mut rig = Rig::new(51, SIZE);
    rig.write_buffer = 16 << 20;
    let core = rig.start_host();
    rig.open();
    // The first blocks of slice 1 into the pool.
    told(&rig, (0..4).map(|i| write(SLICE + (i << 20), 1 << 20, i)).collect());
    rig.world.run_for(Duration::from_secs(5));
    assert!(core.stats().stripes_committed > 0 && core.stats().reads_pool == 0);
    let order = told(
        &rig,
        vec![
            // Merges onto a block in the pool: it waits for the read ...
            write(SLICE, 512, 9),
            // ... and the discard behind it; rounded, it has nothing of slice 0 ...
            Operation::Discard { offset: SLICE - 512, length: 512 + 4096 },
            // ... where this waits for nothing but the log.
            write(SLICE - 4096, 4096, 10),
            // Something else does not wait for them.
            write(SLICE - 8192, 4096, 11),
        ],
    );
    assert_eq!(core.stats().reads_pool, 1, "the first one had to read");
    let place = |token| order.iter().position(|told| *told == token).unwrap();
    assert!(place(1) < place(2) && place(2) < place(3), "{order:?}");
    assert!(place(4) < place(1), "{order:?}");
}

// C23: a read that waits for one write meets the content of the next, which is published with it.
#[test]
fn a_read_that_waited_meets_the_next_write() {
    let mut rig = Rig::new(52, SIZE);
    let core = rig.start_host();
    rig.open();
    let process = rig.host.as_ref().unwrap().0.clone();
    let mut token = 0;
    for round in 0..200 {
        // The first is mirrored when both of its slices' lanes are, the second with one of them.
        let mut operations =
            vec![write(SLICE - 4096, 8192, round), write(SLICE - 4096, 4096, round + 1000)];
        let (mut ended, mut completions) = (0, Vec::new());
        let first = token;
        while ended < token - first || !operations.is_empty() || token - first < 2 {
            let next = match operations.is_empty() {
                false => Some(operations.remove(0)),
                true if token - first < 40 => {
                    Some(Operation::Read { offset: SLICE - 4096, length: 4096 })
                }
                true => None,
            };
            if let Some(operation) = next {
                token += 1;
                core.submit(GuestRequest { token, vdisk: DISK, operation }).unwrap();
            }
            process.wake();
            rig.world.run_for(Duration::from_micros(5));
            core.completions(&mut completions);
            ended += completions.len() as u64;
            assert!(completions.drain(..).all(|completion| completion.result == Ok(())));
        }
    }
}
