//! AES-256-GCM under one subkey, by `ring`, which is the fastest at 4 KiB. Its results are those of the
//! `aes-gcm` crate, which the tests hold it against: either could be put here.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};

use crate::keys::KEY_LENGTH;
use cleave_format::frame::TAG;

/// A subkey, expanded.
pub(crate) struct Cipher(LessSafeKey);

/// The tag does not belong to key, nonce, header and payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unauthentic;

impl Cipher {
    pub(crate) fn new(subkey: &[u8; KEY_LENGTH]) -> Cipher {
        let key = UnboundKey::new(&AES_256_GCM, subkey).expect("the key has the cipher's length");
        Cipher(LessSafeKey::new(key))
    }

    /// Encrypts in place. The caller never uses a counter twice under one subkey (C29).
    pub(crate) fn seal(&self, counter: u64, authenticated: &[u8], bytes: &mut [u8]) -> [u8; TAG] {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(counter), Aad::from(authenticated), bytes)
            .expect("frames are shorter than the cipher's limit");
        tag.as_ref().try_into().expect("the tag has 16 bytes")
    }

    /// Decrypts in place; on an error the bytes are undefined.
    pub(crate) fn open(
        &self,
        counter: u64,
        authenticated: &[u8],
        tag: [u8; TAG],
        bytes: &mut [u8],
    ) -> Result<(), Unauthentic> {
        let (nonce, aad) = (nonce(counter), Aad::from(authenticated));
        let opened = self.0.open_in_place_separate_tag(nonce, aad, Tag::from(tag), bytes, 0..);
        opened.map(|_| ()).map_err(|_| Unauthentic)
    }
}

/// Four zero bytes, then the counter, little-endian.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use aes_gcm::{Aes256Gcm, Key};
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn both_implementations_agree(
            key in any::<[u8; 32]>(),
            counter in any::<u64>(),
            header in any::<[u8; 32]>(),
            content in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let cipher = Cipher::new(&key);
            let mut sealed = content.clone();
            let tag = cipher.seal(counter, &header, &mut sealed);

            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&counter.to_le_bytes());
            let other = Aes256Gcm::new(&Key::<Aes256Gcm>::from(key));
            let payload = Payload { msg: &content, aad: &header };
            let expected = other.encrypt(&nonce.into(), payload).unwrap();
            prop_assert_eq!(&expected[..content.len()], &sealed[..]);
            prop_assert_eq!(&expected[content.len()..], &tag[..]);

            let payload = Payload { msg: &expected, aad: &header };
            prop_assert_eq!(other.decrypt(&nonce.into(), payload).unwrap(), content.clone());
            cipher.open(counter, &header, tag, &mut sealed).unwrap();
            prop_assert_eq!(sealed, content);
        }

        #[test]
        fn any_change_is_refused(
            content in proptest::collection::vec(any::<u8>(), 1..200),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let cipher = Cipher::new(&[7; 32]);
            let mut all = vec![3; 32];
            let mut sealed = content.clone();
            let tag = cipher.seal(5, &all, &mut sealed);
            all.extend_from_slice(&sealed);
            all.extend_from_slice(&tag);
            let at = at.index(all.len());
            all[at] ^= 1 << bit;
            let (header, rest) = all.split_at_mut(32);
            let (payload, tag) = rest.split_at_mut(content.len());
            let tag = (&*tag).try_into().unwrap();
            prop_assert_eq!(cipher.open(5, header, tag, payload), Err(Unauthentic));
        }
    }

    #[test]
    fn another_counter_or_key_is_refused() {
        let mut sealed = *b"content";
        let tag = Cipher::new(&[7; 32]).seal(5, b"header", &mut sealed);
        let mut copy = sealed;
        assert!(Cipher::new(&[7; 32]).open(6, b"header", tag, &mut copy).is_err());
        assert!(Cipher::new(&[8; 32]).open(5, b"header", tag, &mut sealed).is_err());
    }
}
