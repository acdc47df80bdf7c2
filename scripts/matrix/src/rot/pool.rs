//! Rot on the pool's drives, then everything is opened and read again.
//!
//! Each case has a cluster of its own, with stripes of content and of map pieces, of which nothing is left in any
//! memory when the damage is done: host and controllers start after it. Damage of at most two shards of a stripe is
//! solved around; of more it is an error of the blocks that are lost, or of the opening, and says so.

use crate::crash::judge::{at_rest, stripes};
use crate::rig::{DRIVES, Rig, identity};
use crate::rot::Rot;
use crate::tally::{Extent, Tally};
use cleave_format::control::DriveState;
use cleave_format::ids::SlotIndex;
use cleave_format::layout::{COLUMN, PARITY_SHARDS, SHARD, SLOT, SLOT_HEADER};
use cleave_format::superblock::{SUPERBLOCK, Superblock};

/// Bits of a structure that are flipped when they are sampled.
const FEW: u64 = 3;
/// The same when all is played: each case is a whole cluster's life.
const MANY: u64 = 64;

/// A cluster at rest.
struct Resting {
    rig: Rig,
    /// By stripe, in order of age: the slot of each shard.
    slots: Vec<Vec<(usize, u64)>>,
}

/// What a case may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    /// Nothing: redundancy covers it.
    Nothing,
    /// As nothing, and the damage is in something that is read: it must be noticed.
    Noticed,
    /// Blocks, or all of the vdisk; never with other data in their place.
    Blocks,
}

fn resting() -> Resting {
    let mut rig = Rig::running(false);
    // Some in one stripe alone, some in each; a map run among them; some in the log.
    rig.destage(0..300);
    for round in 0..4 {
        rig.destage((0..300).map(|block| block * 3 + round));
    }
    rig.write(900..910);
    rig.settle();
    let runs = rig.host().stats().map_or(0, |stats| stats.runs);
    assert!(runs > 0, "no map run was written");
    rig.kill_host();
    rig.stop_controllers();
    let slots = stripes(&rig).into_iter().map(|(_, row)| {
        row.slots
            .iter()
            .map(|place| {
                let drive = usize::from(place.drive.0);
                (drive, slot_offset(&rig, drive, place.slot))
            })
            .collect()
    });
    let slots = slots.collect();
    Resting { rig, slots }
}

fn slot_offset(rig: &Rig, drive: usize, slot: SlotIndex) -> u64 {
    let capacity = rig.drives[drive].capacity();
    let superblock = Superblock::for_size(identity(drive), capacity);
    superblock.expect("drives are large enough").slot_offset(slot)
}

impl Resting {
    fn strike(&self, drive: usize, offset: u64, length: usize, rot: Rot) {
        let mut bytes = self.rig.drives[drive].peek(offset, length);
        rot.strike(&mut bytes);
        self.rig.drives[drive].overwrite(offset, &bytes);
    }

    fn copy(&self, from: (usize, u64), to: (usize, u64), length: usize) {
        let bytes = self.rig.drives[from.0].peek(from.1, length);
        self.rig.drives[to.0].overwrite(to.1, &bytes);
    }

    fn swap(&self, one: (usize, u64), two: (usize, u64), length: usize) {
        let bytes = self.rig.drives[one.0].peek(one.1, length);
        self.copy(two, one, length);
        self.rig.drives[two.0].overwrite(two.1, &bytes);
    }

    /// Starts everything and reads everything.
    fn read(mut self, cost: Cost) {
        let rig = &mut self.rig;
        rig.start_controllers();
        rig.start_host();
        rig.until("it is open, or said why not", |rig| {
            rig.serves() || rig.open_problem().is_some()
        });
        if let Some(problem) = rig.open_problem() {
            assert_eq!(cost, Cost::Blocks, "the vdisk cannot be opened: {problem}");
            return;
        }
        let failed = rig.read();
        assert!(cost == Cost::Blocks || failed.is_empty(), "blocks cannot be read: {failed:?}");
        if cost != Cost::Nothing {
            let stats = rig.host().stats().expect("it serves");
            let drives = rig.status(0).map_or_else(Vec::new, |status| status.drives);
            let of_drives = |(report, _): &(cleave_datanode_core::drives::DriveReport, u32)| {
                report.counters.identity_faults
            };
            let noticed = stats.checks_failed
                + stats.reads_solved
                + drives.iter().map(of_drives).sum::<u64>()
                + failed.len() as u64;
            assert!(noticed > 0, "nobody noticed");
        }
        if cost != Cost::Blocks {
            self.mend();
        }
    }

    /// Whatever parity covers is mended by a scrub, parity too (C16). A drive whose superblock is gone is lost for good; four
    /// drives have no room for what it held.
    fn mend(mut self) {
        let rig = &mut self.rig;
        rig.settle();
        rig.scrub();
        let whole = [0, 1].into_iter().filter_map(|number| rig.status(number));
        let whole = whole.filter(|status| status.serving).all(|status| {
            status.drives.iter().all(|(report, _)| report.state == DriveState::Active)
        });
        rig.kill_host();
        rig.stop_controllers();
        if whole {
            at_rest(rig);
        }
    }
}

type Strike<'a> = &'a dyn Fn(&Resting);

/// Plays a case, unless its subject is not wanted.
fn case(subject: &str, name: &str, cost: Cost, only: &str, tally: &mut Tally, strike: Strike<'_>) {
    let subject = format!("rot: {subject}");
    if subject.contains(only) {
        tally.play(&subject, name, || {
            let resting = resting();
            strike(&resting);
            resting.read(cost);
        });
    }
}

fn few(extent: Extent) -> u64 {
    if extent == Extent::Sampled { FEW } else { MANY }
}

/// Several shards of one stripe.
pub fn whole_shards(_: Extent, only: &str, tally: &mut Tally) {
    let mut case = |subject: &str, name: &str, cost: Cost, strike: Strike<'_>| {
        case(subject, name, cost, only, tally, strike);
    };
    let whole = "shards of one stripe";
    for (name, lost, cost) in [
        ("two data shards", &[0, 1][..], Cost::Noticed),
        ("a data and a parity shard", &[0, 2], Cost::Noticed),
        ("both parity shards", &[2, 3], Cost::Nothing),
        ("three shards", &[0, 1, 2], Cost::Blocks),
        ("all shards", &[0, 1, 2, 3], Cost::Blocks),
    ] {
        for rot in [Rot::Zeros, Rot::Ones] {
            // Of the header, of the content, and of both.
            for (part, from, to) in
                [("headers", 0, SLOT_HEADER), ("content", SLOT_HEADER, SLOT), ("slots", 0, SLOT)]
            {
                let name = format!("{part} of {name} become {rot:?}");
                case(whole, &name, cost, &|resting| {
                    for slots in &resting.slots {
                        for shard in lost {
                            let (drive, offset) = slots[*shard];
                            resting.strike(drive, offset + from as u64, to - from, rot);
                        }
                    }
                });
            }
        }
    }
}

/// Both copies of them.
pub fn superblocks(extent: Extent, only: &str, tally: &mut Tally) {
    let few = few(extent);
    let mut case = |subject: &str, name: &str, cost: Cost, strike: Strike<'_>| {
        case(subject, name, cost, only, tally, strike);
    };
    let subject = "superblocks";
    for copy in 0..2 {
        for index in 0..few {
            let at = copy * SUPERBLOCK as u64 + index * 131 % 100;
            let rot = Rot::Flip(index as u8);
            case(subject, &format!("a bit of byte {at}"), Cost::Nothing, &|resting| {
                (0..usize::from(DRIVES)).for_each(|drive| resting.strike(drive, at, 1, rot));
            });
        }
        for rot in [Rot::Zeros, Rot::Ones] {
            let name = format!("copy {copy} becomes {rot:?}, of every drive");
            case(subject, &name, Cost::Nothing, &|resting| {
                for drive in 0..usize::from(DRIVES) {
                    resting.strike(drive, copy * SUPERBLOCK as u64, SUPERBLOCK, rot);
                }
            });
        }
    }
    for rot in [Rot::Zeros, Rot::Ones, Rot::Flip(3)] {
        let name = format!("both copies become {rot:?}, of two drives");
        case(subject, &name, Cost::Nothing, &|resting| {
            for drive in [1, 2] {
                resting.strike(drive, 0, SUPERBLOCK, rot);
                resting.strike(drive, SUPERBLOCK as u64, SUPERBLOCK, rot);
            }
        });
    }
    case(subject, "those of two drives are swapped", Cost::Nothing, &|resting| {
        resting.swap((0, 0), (1, 0), 2 * SUPERBLOCK);
    });
    case(subject, "one drive has a copy of another", Cost::Nothing, &|resting| {
        resting.copy((0, 0), (1, 0), SUPERBLOCK);
    });
    case(subject, "both copies are in each other's place", Cost::Nothing, &|resting| {
        resting.swap((0, 0), (0, SUPERBLOCK as u64), SUPERBLOCK);
    });
}

/// Headers of slots, and slots in each other's places.
pub fn slot_headers(extent: Extent, only: &str, tally: &mut Tally) {
    let few = few(extent);
    let mut case = |subject: &str, name: &str, cost: Cost, strike: Strike<'_>| {
        case(subject, name, cost, only, tally, strike);
    };
    let subject = "slot headers";
    for index in 0..few {
        // Spread over what is in use, then over the zeros behind it.
        let at = if index % 2 == 0 { index * 37 % 128 } else { index * 1009 % 4096 };
        for shard in 0..4 {
            let name = format!("a bit of byte {at} of shard {shard}");
            let cost = if shard < 4 - PARITY_SHARDS { Cost::Noticed } else { Cost::Nothing };
            case(subject, &name, cost, &|resting| {
                for slots in &resting.slots {
                    let (drive, offset) = slots[shard];
                    resting.strike(drive, offset + at, 1, Rot::Flip(index as u8));
                }
            });
        }
    }
    let subject = "slots";
    for (what, length) in [("slots", SLOT), ("headers", SLOT_HEADER)] {
        let name = format!("{what} of two shards of a stripe are swapped");
        case(subject, &name, Cost::Noticed, &|resting| {
            resting.slots.iter().for_each(|slots| resting.swap(slots[0], slots[1], length));
        });
        let name = format!("{what} of two stripes are swapped");
        case(subject, &name, Cost::Noticed, &|resting| {
            let pair = resting.slots.rchunks(2).filter(|pair| pair.len() == 2);
            pair.for_each(|pair| resting.swap(pair[0][0], pair[1][0], length));
        });
        let name = format!("{what} of an older stripe in place of a newer one's");
        case(subject, &name, Cost::Noticed, &|resting| {
            let last = resting.slots.len() - 1;
            (0..2).for_each(|shard| {
                resting.copy(resting.slots[0][shard], resting.slots[last][shard], length);
            });
        });
    }
}

/// What is in slots, footers too.
pub fn shards(extent: Extent, only: &str, tally: &mut Tally) {
    let few = few(extent);
    let mut case = |subject: &str, name: &str, cost: Cost, strike: Strike<'_>| {
        case(subject, name, cost, only, tally, strike);
    };
    let subject = "data and parity";
    for index in 0..2 * few {
        // From the frames at the beginning to the footer at the end.
        let at = SLOT_HEADER as u64 + index * (SHARD as u64 - 1) / (2 * few - 1);
        for shard in 0..4 {
            let name = format!("a bit of byte {at} of shard {shard}");
            case(subject, &name, Cost::Nothing, &|resting| {
                for slots in &resting.slots {
                    let (drive, offset) = slots[shard];
                    resting.strike(drive, offset + at, 1, Rot::Flip(index as u8));
                }
            });
        }
    }
    for index in 0..few {
        let at = index as usize * (SHARD / COLUMN - 1) / (few.max(2) as usize - 1) * COLUMN;
        for rot in [Rot::Zeros, Rot::Ones] {
            let name = format!("the column at {at} becomes {rot:?}, of two shards");
            case(subject, &name, Cost::Nothing, &|resting| {
                for slots in &resting.slots {
                    for (drive, offset) in [slots[0], slots[3]] {
                        resting.strike(drive, offset + (SLOT_HEADER + at) as u64, COLUMN, rot);
                    }
                }
            });
        }
    }
    // The end of the second data shard: trailer and entries.
    for back in [1, 4, 20, 36, 60, 64, 70, 150, 1000] {
        let name = format!("a bit of the footer, {back} bytes from its end");
        let cost = if back <= 64 { Cost::Noticed } else { Cost::Nothing };
        case("footers", &name, cost, &|resting| {
            for slots in &resting.slots {
                let (drive, offset) = slots[1];
                resting.strike(drive, offset + SLOT as u64 - back, 1, Rot::Flip(2));
            }
        });
    }
    case("footers", "those of two stripes are swapped", Cost::Noticed, &|resting| {
        let at = |(drive, offset): (usize, u64)| (drive, offset + (SLOT - 64) as u64);
        let pairs = resting.slots.rchunks(2).filter(|pair| pair.len() == 2);
        pairs.for_each(|pair| resting.swap(at(pair[0][1]), at(pair[1][1]), 64));
    });
    case(
        subject,
        "content of two stripes is swapped, headers are not",
        Cost::Noticed,
        &|resting| {
            let at = |(drive, offset): (usize, u64)| (drive, offset + SLOT_HEADER as u64);
            let pairs = resting.slots.rchunks(2).filter(|pair| pair.len() == 2);
            pairs.for_each(|pair| resting.swap(at(pair[0][0]), at(pair[1][0]), SHARD));
        },
    );
}
