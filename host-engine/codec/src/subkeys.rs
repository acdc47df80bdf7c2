//! Subkeys of other incarnations and cores, derived when their frames are read, and kept: a bounded number,
//! the longest unused one goes first.

use crate::aead::Cipher;
use crate::keys::Keys;
use cleave_format::ids::Incarnation;
use std::collections::BTreeMap;

/// Most subkeys that are kept. Frames of one group were mostly written under few; deriving one
/// costs about as much as decrypting one block.
pub(crate) const SUBKEYS_MAX: usize = 256;

/// The kept subkeys of one data key.
#[derive(Default)]
pub(crate) struct Subkeys {
    kept: BTreeMap<(Incarnation, u16), Kept>,
    uses: u64,
}

struct Kept {
    cipher: Cipher,
    used: u64,
}

impl Subkeys {
    /// The subkey of a core of an engine start.
    pub(crate) fn get(&mut self, keys: &Keys, incarnation: Incarnation, core: u16) -> &Cipher {
        self.uses += 1;
        let uses = self.uses;
        let name = (incarnation, core);
        if self.kept.len() >= SUBKEYS_MAX && !self.kept.contains_key(&name) {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used);
            let oldest = *oldest.expect("the cache is not empty").0;
            self.kept.remove(&oldest);
        }
        let kept = self.kept.entry(name).or_insert_with(|| Kept {
            cipher: Cipher::new(&keys.subkey(incarnation, core)),
            used: uses,
        });
        kept.used = uses;
        &kept.cipher
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;

    #[test]
    fn the_number_of_subkeys_is_bounded_and_the_used_ones_stay() {
        let keys = Keys::derive(NonZeroU32::MIN, &[1; 32]);
        let mut subkeys = Subkeys::default();
        for incarnation in 0..3 * SUBKEYS_MAX as u64 {
            subkeys.get(&keys, Incarnation(incarnation), 0);
            subkeys.get(&keys, Incarnation(0), 0);
            assert!(subkeys.kept.len() <= SUBKEYS_MAX);
        }
        assert!(subkeys.kept.contains_key(&(Incarnation(0), 0)));
        assert!(!subkeys.kept.contains_key(&(Incarnation(1), 0)));
    }
}
