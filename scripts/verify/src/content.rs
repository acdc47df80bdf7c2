//! What a sector holds after a write.
//!
//! A sector's bytes are a function of seed, write and sector number, begin with the latter two, and
//! come in four kinds, from incompressible to highly compressible. So a sector that was misplaced,
//! kept from an older write, or damaged anywhere is told apart from the right one.

use crate::random::Random;

/// Bytes of a sector, the smallest unit of a request.
pub const SECTOR: usize = 512;

const HEAD: usize = 16;

/// Names a sector's content: 0 is all zeros, others are numbers of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Content(pub u32);

/// All zeros: never written, zeroed or discarded.
pub const ZEROS: Content = Content(0);

/// Fills one sector.
pub fn fill(seed: u64, content: Content, sector: u64, bytes: &mut [u8]) {
    assert_eq!(bytes.len(), SECTOR, "sectors are filled one by one");
    bytes.fill(0);
    if content == ZEROS {
        return;
    }
    // The upper bits of the number carry part of the seed: content of another run is foreign.
    bytes[0..4].copy_from_slice(&content.0.to_le_bytes());
    bytes[4..8].copy_from_slice(&(seed as u32).to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
    let mut random = Random::new(seed ^ (u64::from(content.0) << 32) ^ sector);
    let body = &mut bytes[HEAD..];
    match content.0 % 4 {
        0 => noise(&mut random, body),
        1 => noise(&mut random, &mut body[..SECTOR / 4]),
        2 => noise(&mut random, &mut body[..SECTOR / 2]),
        _ => {
            let word = random.draw().to_le_bytes();
            body.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word[..chunk.len()]));
        }
    }
}

/// Which content these bytes are, or what is wrong with them.
pub fn recognise(seed: u64, sector: u64, bytes: &[u8]) -> Result<Content, String> {
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(ZEROS);
    }
    let content = Content(u32::from_le_bytes(bytes[0..4].try_into().expect("four bytes")));
    let mut expected = [0; SECTOR];
    fill(seed, content, sector, &mut expected);
    match bytes.iter().zip(&expected).position(|(found, expected)| found != expected) {
        None => Ok(content),
        Some(at) => Err(format!(
            "it claims to be write {}, run {:#x}, sector {}, and differs from that at byte {at}",
            content.0,
            u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes")),
            u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")),
        )),
    }
}

fn noise(random: &mut Random, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.draw().to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_recognised_where_it_belongs_only() {
        let mut bytes = [0; SECTOR];
        for content in (0..9).map(Content) {
            fill(7, content, 40, &mut bytes);
            assert_eq!(recognise(7, 40, &bytes), Ok(content));
            if content != ZEROS {
                assert!(recognise(7, 41, &bytes).is_err(), "a misplaced sector was accepted");
                assert!(recognise(8, 40, &bytes).is_err(), "another run's sector was accepted");
            }
            for at in [0, 15, 200, SECTOR - 1] {
                let mut damaged = bytes;
                damaged[at] ^= 1;
                assert!(recognise(7, 40, &damaged) != Ok(content), "damage at {at} was accepted");
            }
        }
    }
}
