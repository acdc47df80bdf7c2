//! Control records: round trips, refusals, golden bytes.

use super::*;
use crate::testing;
use crate::{decode, encode};
use proptest::collection::vec;
use proptest::prelude::*;

fn stripe() -> impl Strategy<Value = StripeId> {
    any::<u64>().prop_map(StripeId)
}

fn slot() -> impl Strategy<Value = SlotPlace> {
    any::<(u16, u32, u32)>().prop_map(|(drive, slot, generation)| SlotPlace {
        drive: DriveId(drive),
        slot: SlotIndex(slot),
        generation,
    })
}

fn vdisk() -> impl Strategy<Value = CommitVdisk> {
    let release = any::<(u32, u64, u64, u64)>().prop_map(|(slice, epoch, first, last)| Release {
        slice: SliceIndex(slice),
        epoch: Epoch(epoch),
        first: Sequence(first),
        last: Sequence(last),
    });
    let reference = proptest::option::of(testing::address());
    let entry = (any::<(u32, u16, u16)>(), testing::version(), reference).prop_map(
        |((slice, block, blocks), version, reference)| InlineEntry {
            slice: SliceIndex(slice),
            block,
            blocks,
            version,
            reference,
        },
    );
    let piece = (any::<u32>(), proptest::option::of(testing::address()))
        .prop_map(|(group, address)| PiecePlace { group, address });
    let run = (any::<u64>(), vec(piece, 0..4), vec(stripe(), 0..4)).prop_map(
        |(frontier, pieces, unreferenced)| MapRun {
            frontier: Position(frontier),
            pieces,
            unreferenced,
        },
    );
    (
        any::<(u64, u64, bool, bool, bool)>(),
        vec(release, 0..4),
        vec(entry, 0..4),
        vec(stripe(), 0..4),
        proptest::option::of(run),
    )
        .prop_map(|(flags, releases, entries, references, run)| {
            let (vdisk, epoch, struck, in_footer, has_pieces) = flags;
            CommitVdisk {
                vdisk: VdiskId(vdisk),
                epoch: Epoch(epoch),
                struck,
                in_footer,
                has_pieces,
                releases,
                entries,
                references,
                run,
            }
        })
}

fn control() -> impl Strategy<Value = Control> {
    let grant =
        (stripe(), vec(slot(), 0..10)).prop_map(|(stripe, slots)| GrantedStripe { stripe, slots });
    let cut = (any::<u32>(), testing::version())
        .prop_map(|(slice, version)| (SliceIndex(slice), version));
    prop_oneof![
        any::<(u32, u64)>().prop_map(|(host, incarnation)| Control::HostStart {
            host: HostId(host),
            incarnation: Incarnation(incarnation),
        }),
        any::<(u64, u64, u32, u64)>().prop_map(|(vdisk, epoch, host, incarnation)| {
            Control::Seal {
                vdisk: VdiskId(vdisk),
                epoch: Epoch(epoch),
                host: HostId(host),
                incarnation: Incarnation(incarnation),
            }
        }),
        (any::<u64>(), vec(grant, 0..4)).prop_map(|(incarnation, stripes)| Control::Grant {
            incarnation: Incarnation(incarnation),
            stripes,
        }),
        vec(stripe(), 0..4).prop_map(|stripes| Control::GrantEnd { stripes }),
        (stripe(), any::<(u64, u16)>(), vec(slot(), 0..10), vec(vdisk(), 0..4)).prop_map(
            |(stripe, (incarnation, shards_missing), slots, vdisks)| Control::Commit(Commit {
                stripe,
                incarnation: Incarnation(incarnation),
                slots,
                shards_missing,
                vdisks,
            })
        ),
        any::<(u64, u64)>().prop_map(|(vdisk, epoch)| Control::Delete {
            vdisk: VdiskId(vdisk),
            epoch: Epoch(epoch),
        }),
        any::<(u16, bool, u32)>().prop_map(|(drive, active, generation)| Control::Drive {
            drive: DriveId(drive),
            state: if active { DriveState::Active } else { DriveState::Lost },
            generation,
        }),
        (any::<u64>(), vec(cut, 0..4))
            .prop_map(|(vdisk, slices)| Control::Cut { vdisk: VdiskId(vdisk), slices }),
        vec((testing::address(), testing::address()), 0..4)
            .prop_map(|frames| Control::Move { frames }),
        Just(Control::HoldSlots),
        Just(Control::FreeHeld),
        (stripe(), any::<u32>(), stripe(), vec((any::<u8>(), slot()), 0..3)).prop_map(
            |(stripe, generation, loan, shards)| Control::Swap(Swap {
                stripe,
                generation,
                loan,
                shards,
            })
        ),
    ]
}

proptest! {
    #[test]
    fn control_records_come_back(control in control()) {
        prop_assert_eq!(decode::<Control>(&encode(&control)), Ok(control));
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        mut bytes in vec(any::<u8>(), 0..200),
        variant in proptest::option::of(0u8..13),
    ) {
        if let (Some(variant), Some(head)) = (variant, bytes.first_chunk_mut::<4>()) {
            *head = [variant, 0, 0, 0];
        }
        let _ = decode::<Control>(&bytes);
    }

    #[test]
    fn damaged_records_are_refused_or_read_without_panic(
        control in control(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut bytes = encode(&control);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let _ = decode::<Control>(&bytes);
    }
}

/// The number of a variant never changes: it is the record's first four bytes.
#[test]
fn golden_variants() {
    let address = Address { stripe: StripeId(1), offset: 32, length: 48 };
    let variants = [
        (0, Control::HostStart { host: HostId(1), incarnation: Incarnation(2) }),
        (
            1,
            Control::Seal {
                vdisk: VdiskId(1),
                epoch: Epoch(2),
                host: HostId(3),
                incarnation: Incarnation(4),
            },
        ),
        (2, Control::Grant { incarnation: Incarnation(1), stripes: vec![] }),
        (3, Control::GrantEnd { stripes: vec![] }),
        (
            4,
            Control::Commit(Commit {
                stripe: StripeId(1),
                incarnation: Incarnation(2),
                slots: vec![],
                shards_missing: 0,
                vdisks: vec![],
            }),
        ),
        (5, Control::Delete { vdisk: VdiskId(1), epoch: Epoch(2) }),
        (6, Control::Drive { drive: DriveId(1), state: DriveState::Lost, generation: 3 }),
        (7, Control::Cut { vdisk: VdiskId(1), slices: vec![] }),
        (8, Control::Move { frames: vec![(address, address)] }),
        (9, Control::HoldSlots),
        (10, Control::FreeHeld),
    ];
    for (number, control) in variants {
        assert_eq!(encode(&control)[..4], u32::to_le_bytes(number), "{control:?}");
    }
}

#[test]
fn golden_commit() {
    let commit = Control::Commit(Commit {
        stripe: StripeId(0x11),
        incarnation: Incarnation(0x22),
        slots: vec![SlotPlace { drive: DriveId(3), slot: SlotIndex(4), generation: 5 }],
        shards_missing: 1,
        vdisks: vec![CommitVdisk {
            vdisk: VdiskId(6),
            epoch: Epoch(7),
            struck: false,
            in_footer: true,
            has_pieces: false,
            releases: vec![Release {
                slice: SliceIndex(8),
                epoch: Epoch(9),
                first: Sequence(10),
                last: Sequence(11),
            }],
            entries: vec![InlineEntry {
                slice: SliceIndex(12),
                block: 13,
                blocks: 1,
                version: Version { epoch: Epoch(14), sequence: Sequence(15) },
                reference: Some(Address { stripe: StripeId(16), offset: 32, length: 48 }),
            }],
            references: vec![StripeId(16)],
            run: Some(MapRun {
                frontier: Position(17),
                pieces: vec![PiecePlace { group: 18, address: None }],
                unreferenced: vec![StripeId(19)],
            }),
        }],
    });
    let golden = "\
        04000000110000000000000022000000 00000000010000000000000003000400 \
        00000500000001000100000000000000 06000000000000000700000000000000 \
        0001000100000000000000080000000900 0000000000000a000000000000000b00 \
        00000000000001000000000000000c00 00000d0001000e000000000000000f00 \
        00000000000001100000000000000020 00000030000000 \
        01000000000000001000000000000000 011100000000000000 \
        01000000000000001200000000 01000000000000001300000000000000";
    assert_eq!(encode(&commit), crate::testing::unhex(golden));
}

#[test]
fn golden_swap() {
    let swap = Control::Swap(Swap {
        stripe: StripeId(0x11),
        generation: 0x22,
        loan: StripeId(0x33),
        shards: vec![(4, SlotPlace { drive: DriveId(5), slot: SlotIndex(6), generation: 7 })],
    });
    let golden = "\
        0b000000110000000000000022000000 33000000000000000100000000000000 \
        0405000600000007000000";
    assert_eq!(encode(&swap), crate::testing::unhex(golden));
}

// The check covers the place (C3).
#[test]
fn golden_check() {
    let bytes = encode(&Control::GrantEnd { stripes: vec![StripeId(5)] });
    let golden = 0x547c_0785;
    assert_eq!(check(Position(7), &bytes), golden);
    assert_ne!(check(Position(8), &bytes), golden);
}
