//! Keys, and what is derived from them. All derivations are HKDF-SHA256 with a label of their own.

use cleave_format::ids::Incarnation;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit};
use sha2::Sha256;
use std::num::NonZeroU32;

/// Bytes of a key.
pub const KEY_LENGTH: usize = 32;

const LABEL_DATA: &[u8] = b"cleave data key 1";
const LABEL_FINGERPRINT: &[u8] = b"cleave fingerprint key 1";
const LABEL_SUBKEY: &[u8] = b"cleave frame subkey 1";
const LABEL_CHECK: &[u8] = b"cleave key check 1";

/// The keys of a datastore. Fingerprints have their own, which stays when the data key rotates (C30).
#[derive(Clone)]
pub struct Keys {
    id: NonZeroU32,
    data: [u8; KEY_LENGTH],
    fingerprint: [u8; KEY_LENGTH],
}

// Keys are in no message and no log.
impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Keys {
    /// Keys as they are. `id` is what frame headers name the data key by.
    pub fn new(id: NonZeroU32, data: [u8; KEY_LENGTH], fingerprint: [u8; KEY_LENGTH]) -> Keys {
        Keys { id, data, fingerprint }
    }

    /// Both keys from one master key.
    pub fn derive(id: NonZeroU32, master: &[u8; KEY_LENGTH]) -> Keys {
        let mut keys = Keys { id, data: [0; KEY_LENGTH], fingerprint: [0; KEY_LENGTH] };
        expand(master, &[LABEL_DATA], &mut keys.data);
        expand(master, &[LABEL_FINGERPRINT], &mut keys.fingerprint);
        keys
    }

    /// What frame headers name the data key by.
    pub fn id(&self) -> NonZeroU32 {
        self.id
    }

    /// The key that one core of one engine start encrypts under (C29).
    pub(crate) fn subkey(&self, incarnation: Incarnation, core: u16) -> [u8; KEY_LENGTH] {
        let mut subkey = [0; KEY_LENGTH];
        let (incarnation, core) = (incarnation.0.to_le_bytes(), core.to_le_bytes());
        expand(&self.data, &[LABEL_SUBKEY, &incarnation, &core], &mut subkey);
        subkey
    }

    /// The keyed hash for fingerprints, ready to be cloned for each block.
    pub(crate) fn fingerprint_hash(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.fingerprint).expect("HMAC takes keys of any length")
    }
}

/// Tells whether two sets of keys are the same without telling anything about them: to be stored with the
/// cluster and compared at each start, so that a wrong key is found before anything is written under it.
pub fn key_check_value(keys: &Keys) -> [u8; 16] {
    let mut both = [0; 2 * KEY_LENGTH];
    both[..KEY_LENGTH].copy_from_slice(&keys.data);
    both[KEY_LENGTH..].copy_from_slice(&keys.fingerprint);
    let mut value = [0; 16];
    expand(&both, &[LABEL_CHECK, &keys.id.get().to_le_bytes()], &mut value);
    value
}

fn expand(key: &[u8], info: &[&[u8]], out: &mut [u8]) {
    Hkdf::<Sha256>::new(None, key)
        .expand_multi_info(info, out)
        .expect("outputs are shorter than HKDF's limit");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::derive(NonZeroU32::new(7).unwrap(), &std::array::from_fn(|index| index as u8))
    }

    /// Computed with Python's `hmac` and `hashlib` after RFC 5869.
    #[test]
    fn derivations_are_those_of_the_format() {
        let keys = keys();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(&keys.data),
            "c6c680fe936d5a20b04a6891b0231ad9971f8bc13849dd3bf3489f1dfdb36999"
        );
        assert_eq!(
            hex(&keys.fingerprint),
            "659d1a48de9b9867da5d12bedac88e0650f39536c10481d180764cae15032beb"
        );
        assert_eq!(
            hex(&keys.subkey(Incarnation(0x0102), 3)),
            "1f28d4d798850c27c8c6c4dcb9de5ea26c94458ea7e0d5a7900de87f9d23c57b"
        );
        assert_eq!(hex(&key_check_value(&keys)), "94ae61f697da7e28766145c711590959");
    }

    #[test]
    fn everything_that_differs_gives_another_key() {
        let keys = keys();
        let other = Keys::derive(keys.id, &[9; KEY_LENGTH]);
        let mut seen = [
            keys.subkey(Incarnation(1), 0),
            keys.subkey(Incarnation(1), 1),
            keys.subkey(Incarnation(2), 0),
            keys.subkey(Incarnation(1 << 16), 0),
            other.subkey(Incarnation(1), 0),
            keys.data,
            keys.fingerprint,
        ];
        seen.sort_unstable();
        assert!(seen.windows(2).all(|pair| pair[0] != pair[1]));
        assert_ne!(key_check_value(&keys), key_check_value(&other));
        let renamed = Keys::new(NonZeroU32::new(8).unwrap(), keys.data, keys.fingerprint);
        assert_ne!(key_check_value(&keys), key_check_value(&renamed));
    }

    #[test]
    fn debug_output_names_the_key_and_shows_none() {
        assert_eq!(format!("{:?}", keys()), "Keys { id: 7, .. }");
    }
}
