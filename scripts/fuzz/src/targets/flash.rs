//! What lies on a host's flash: superblocks and zone headers, alone and as one of two copies.

use super::format::{page, unpaged};
use cleave_format::flash::{
    FLASH_PAGE, FlashId, FlashSuperblock, PlaceState, StoredPart, ZoneHeader, choose_header,
    choose_superblock,
};
use cleave_format::ids::{ClusterId, StripeId};

/// Superblocks and headers.
pub(super) fn flash(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let copies = [page(first), page(second), page(data), data.to_vec()];
    for bytes in &copies {
        if let Ok(superblock) = FlashSuperblock::decode(bytes) {
            assert_eq!(FlashSuperblock::decode(&superblock.encode()), Ok(superblock.clone()));
            // The next generation mends a damaged copy.
            let next =
                FlashSuperblock { generation: superblock.generation + 1, ..superblock.clone() };
            assert_ne!(next.copy_offset(), superblock.copy_offset());
            let last = superblock.place_offset(superblock.zones - 1, superblock.places - 1);
            assert!(last < superblock.size);
        }
        if let Ok(header) = ZoneHeader::decode(bytes) {
            let mut again = vec![0; FLASH_PAGE];
            header.encode(&mut again);
            assert_eq!(ZoneHeader::decode(&again), Ok(header.clone()));
            let places = header.places.len() as u16;
            let described = FlashSuperblock { device: header.device, places, ..described() };
            let both = [&copies[0][..], &copies[1][..]].concat();
            if let Some(found) = choose_header(&both, &described, header.zone) {
                assert_eq!((found.device, found.zone), (header.device, header.zone));
            }
        }
    }
    let _ = choose_superblock(&copies[0], &copies[1]);
    let _ = choose_superblock(&copies[2], &copies[3]);
    let _ = choose_header(data, &described(), 0);
}

fn described() -> FlashSuperblock {
    let superblock = FlashSuperblock::for_size(ClusterId([1; 16]), FlashId([2; 16]), 64 << 20);
    superblock.expect("64 MiB are enough")
}

/// One copy of either, and two.
pub(super) fn flash_seeds() -> Vec<Vec<u8>> {
    let first = described();
    let second = FlashSuperblock { generation: 1, ..first.clone() };
    let part = |part| StoredPart { stripe: StripeId(77), part, crc: 0x1234_5678 };
    let mut places = vec![PlaceState::Empty; usize::from(first.places)];
    places[..3].copy_from_slice(&[
        PlaceState::Present(part(0)),
        PlaceState::Tentative(part(63)),
        PlaceState::Retired,
    ]);
    let header = |generation| {
        let (device, places) = (first.device, places.clone());
        let mut bytes = vec![0; FLASH_PAGE];
        ZoneHeader { device, zone: 3, sequence: 9, generation, places }.encode(&mut bytes);
        unpaged(&bytes)
    };
    let both = |one: Vec<u8>, other: Vec<u8>| {
        let length = one.len().max(other.len());
        let mut bytes = one;
        bytes.resize(length, 0);
        bytes.extend_from_slice(&other);
        bytes.resize(2 * length, 0);
        bytes
    };
    vec![
        unpaged(&first.encode()),
        header(4),
        both(unpaged(&first.encode()), unpaged(&second.encode())),
        both(header(4), header(5)),
    ]
}
