//! Frames on their way back to blocks and objects: what the checksum did not catch must not break the codec.

use bytes::BytesMut;
use cleave_codec::{Codec, Encoded, Keys, Settings};
use cleave_format::ids::Incarnation;
use std::cell::RefCell;
use std::num::NonZeroU32;

fn keys() -> Keys {
    Keys::derive(NonZeroU32::MIN, &[7; 32])
}

fn codec(keys: Option<Keys>) -> Codec {
    Codec::new(Settings { incarnation: Incarnation(9), core: 0, keys })
}

thread_local! {
    // Decoding leaves nothing behind but subkeys; making a codec is what takes long.
    static CODECS: RefCell<[Codec; 2]> = RefCell::new([codec(None), codec(Some(keys()))]);
}

/// Any bytes as a frame, decoded with and without keys, into room of all sizes.
pub(super) fn frame(data: &[u8]) {
    CODECS.with_borrow_mut(|codecs| {
        for codec in codecs {
            let mut out = vec![0; 16 * 4096];
            for room in [0, 4096, 2 * 4096 + 1, 16 * 4096] {
                if let Ok(length) = codec.decode(data, &mut out[..room]) {
                    assert!(length <= room && length.is_multiple_of(4096) && length > 0);
                }
            }
            let mut object = Vec::new();
            if codec.decode_object(data, &mut object).is_ok() {
                assert!(object.len() <= cleave_codec::OBJECT_LENGTH_MAX);
            }
        }
    });
}

/// Blocks and objects, compressible and not, encrypted and not.
pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..4096_u32).map(|at| (at % 17 * (at / 64 % 3)) as u8).collect();
    let mut seeds = Vec::new();
    for keys in [None, Some(keys())] {
        let mut codec = codec(keys);
        let mut out = BytesMut::new();
        assert!(matches!(codec.encode_block(&text, &mut out), Encoded::Frame { .. }));
        seeds.push(out.split().to_vec());
        for object in [&text[..], b"short", b"x"] {
            codec.encode_object(object, &mut out);
            seeds.push(out.split().to_vec());
        }
    }
    seeds
}
