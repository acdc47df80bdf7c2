//! Round trips, refusals, and frames as they are at rest.

use super::*;
use crate::{KEY_LENGTH, Keys};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use cleave_format::FormatError;
use cleave_format::frame::{Codec as Kind, check_in_log};
use proptest::collection::vec;
use proptest::prelude::*;
use std::num::NonZeroU32;

fn keys(id: u32, seed: u8) -> Keys {
    Keys::derive(NonZeroU32::new(id).unwrap(), &[seed; KEY_LENGTH])
}

fn codec(incarnation: u64, keys: Option<Keys>) -> Codec {
    Codec::new(Settings { incarnation: Incarnation(incarnation), core: 3, keys })
}

/// Content of any compressibility: runs, repeats, noise, zeros.
fn content(length: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), length), 0u8..4).prop_map(|(mut bytes, kind)| {
        for index in 0..bytes.len() {
            match kind {
                0 => {}
                1 => bytes[index] = (index / 300) as u8,
                2 if index >= 100 => bytes[index] = bytes[index - 100],
                2 => {}
                _ => bytes[index] &= if index % 1000 < 900 { 0 } else { 0xff },
            }
        }
        bytes
    })
}

fn maybe_keys() -> impl Strategy<Value = Option<Keys>> {
    any::<bool>().prop_map(|encrypted| encrypted.then(|| keys(7, 1)))
}

/// The frame of a block that is not zero, alone.
fn encode(codec: &mut Codec, block: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    let encoded = codec.encode_block(block, &mut out);
    assert_eq!(encoded, Encoded::Frame { length: out.len() });
    out.to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn blocks_come_back(blocks in vec(content(BLOCK), 1..5), keys in maybe_keys()) {
        let mut writer = codec(1, keys.clone());
        // A reader of a later start, on another core.
        let mut reader = Codec::new(Settings { incarnation: Incarnation(2), core: 0, keys });
        let mut out = BytesMut::from(&b"before"[..]);
        for block in &blocks {
            let start = out.len();
            match writer.encode_block(block, &mut out) {
                Encoded::Zero => {
                    prop_assert!(block.iter().all(|byte| *byte == 0));
                    prop_assert_eq!(out.len(), start);
                }
                Encoded::Frame { length } => {
                    let frame = &out[start..];
                    prop_assert_eq!(frame.len(), length);
                    prop_assert_eq!(check_in_log(frame).unwrap().blocks, 1);
                    for codec in [&mut reader, &mut writer] {
                        let mut decoded = [0xa5; BLOCK + 1];
                        prop_assert_eq!(codec.decode(frame, &mut decoded), Ok(BLOCK));
                        prop_assert_eq!(&decoded[..BLOCK], &block[..]);
                    }
                    prop_assert_eq!(reader.decode_object(frame, &mut Vec::new()), Err(CodecError::Kind));
                }
            }
        }
        prop_assert_eq!(&out[..6], b"before");
    }

    #[test]
    fn objects_come_back(object in content(1..OBJECT_LENGTH_MAX), keys in maybe_keys()) {
        let mut codec = codec(1, keys);
        let mut out = BytesMut::new();
        let length = codec.encode_object(&object, &mut out);
        prop_assert_eq!(out.len(), length);
        prop_assert_eq!(check_in_log(&out).unwrap().blocks, 0);
        let mut decoded = vec![1, 2, 3];
        codec.decode_object(&out, &mut decoded).unwrap();
        prop_assert_eq!(decoded, object);
        prop_assert_eq!(codec.decode(&out, &mut [0; 1 << 17]), Err(CodecError::Kind));
    }

    #[test]
    fn any_change_of_an_encrypted_frame_is_refused(
        block in content(BLOCK),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        prop_assume!(!is_zero(&block));
        let mut codec = codec(1, Some(keys(7, 1)));
        let good = encode(&mut codec, &block);
        let header = check_in_log(&good).unwrap();
        let mut bad = good.clone();
        // Header or payload; the padding is the checksum's alone.
        let at = at.index(FRAME_HEADER + usize::from(header.payload_length));
        bad[at] ^= 1 << bit;
        prop_assert_eq!(check_in_log(&bad), Err(FormatError::Checksum("frame")));
        let decoded = codec.decode(&bad, &mut [0; 1 << 17]);
        // The checksum is not authenticated.
        prop_assert_eq!(decoded.is_ok(), (8..12).contains(&at));
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        mut bytes in vec(any::<u8>(), 0..300),
        shaped in any::<bool>(),
        codec_byte in 0u8..3,
        blocks in 0u8..3,
        keyed in maybe_keys(),
    ) {
        // Half of them look like a frame with a payload of garbage.
        if shaped && bytes.len() > FRAME_HEADER {
            let length = (bytes.len() - FRAME_HEADER) as u16;
            bytes[..4].copy_from_slice(&[1, codec_byte, blocks, 0]);
            bytes[4..6].copy_from_slice(&length.to_le_bytes());
            bytes[12..16].copy_from_slice(&[0; 4]);
        }
        let mut codec = codec(1, keyed);
        let _ = codec.decode(&bytes, &mut [0; 1 << 14]);
        let _ = codec.decode_object(&bytes, &mut Vec::new());
    }

    #[test]
    fn zeros_are_found(length in 0usize..700, at in any::<prop::sample::Index>(), byte in 1u8..) {
        let mut bytes = vec![0; length];
        prop_assert!(is_zero(&bytes));
        if length > 0 {
            bytes[at.index(length)] = byte;
            prop_assert!(!is_zero(&bytes));
        }
    }
}

#[test]
fn content_that_does_not_shrink_is_stored() {
    let mut noise = [0; OBJECT_LENGTH_MAX];
    let mut state = 1u32;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let mut codec = codec(1, None);
    let header = check_in_log(&encode(&mut codec, &noise[..BLOCK])).unwrap();
    assert_eq!((header.codec, usize::from(header.payload_length)), (Kind::Stored, BLOCK));
    let header = check_in_log(&encode(&mut codec, &[7; BLOCK])).unwrap();
    assert_eq!(header.codec, Kind::Lz4);
    assert!(header.payload_length < 100);
    // The largest object fits, also encrypted.
    let mut encrypting = self::codec(1, Some(keys(7, 1)));
    let mut out = BytesMut::new();
    let length = encrypting.encode_object(&noise, &mut out);
    assert_eq!(length, cleave_format::frame::FRAME_LENGTH_MAX);
}

#[test]
fn every_frame_has_its_own_counter() {
    let mut codec = codec(9, Some(keys(7, 1)));
    let mut out = BytesMut::new();
    for expected in 0..5 {
        let frame = if expected % 2 == 0 {
            encode(&mut codec, &[1; BLOCK])
        } else {
            out.clear();
            codec.encode_object(b"object", &mut out);
            out.to_vec()
        };
        // Zero blocks have no frame and take no counter.
        assert_eq!(codec.encode_block(&[0; BLOCK], &mut out), Encoded::Zero);
        let header = check_in_log(&frame).unwrap();
        assert_eq!(
            (header.counter, header.core, header.incarnation),
            (expected, 3, Incarnation(9))
        );
    }
    assert_eq!(codec.frames(), 5);
}

#[test]
fn a_wrong_key_is_told_from_damage_and_from_no_key() {
    let mut out = [0; BLOCK];
    let plain = encode(&mut codec(1, None), &[5; BLOCK]);
    let sealed = encode(&mut codec(1, Some(keys(7, 1))), &[5; BLOCK]);
    let decode =
        |given: Option<Keys>, frame: &[u8], out: &mut [u8]| codec(2, given).decode(frame, out);

    let unknown = Err(CodecError::KeyUnknown { key: 7 });
    assert_eq!(decode(None, &sealed, &mut out), unknown);
    assert_eq!(decode(Some(keys(8, 1)), &sealed, &mut out), unknown);
    let wrong = Err(CodecError::Authentication { key: 7 });
    assert_eq!(decode(Some(keys(7, 2)), &sealed, &mut out), wrong);
    assert_eq!(decode(Some(keys(7, 1)), &plain, &mut out), Err(CodecError::NotEncrypted));
    assert_eq!(decode(Some(keys(7, 1)), &sealed, &mut out), Ok(BLOCK));
}

#[test]
fn a_frame_cut_short_or_an_output_too_small_is_refused() {
    let mut codec = codec(1, None);
    let frame = encode(&mut codec, &[5; BLOCK]);
    for length in 0..FRAME_HEADER + 16 {
        assert!(codec.decode(&frame[..length], &mut [0; BLOCK]).is_err());
    }
    assert_eq!(codec.decode(&frame, &mut [0; BLOCK - 1]), Err(CodecError::Kind));
}

#[test]
fn fingerprints_are_of_the_content_and_of_the_key() {
    let hex = |bytes: [u8; 32]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let block = [0x61; BLOCK];
    // Computed with Python's `hashlib` and `hmac`.
    assert_eq!(
        hex(codec(1, None).fingerprint(&block)),
        "c93eee2d0db02f10acc7460d9576e122dcf8cd53c4bf8dfcae1b3e74ebcfff5a"
    );
    let given = Keys::new(NonZeroU32::MIN, [1; KEY_LENGTH], [2; KEY_LENGTH]);
    assert_eq!(
        hex(codec(1, Some(given)).fingerprint(&block)),
        "e170bc336ae2b0566925abeb72f4f8ea4a0c7b964929fd766d0e953cbd58198c"
    );
    // The same over starts and data keys (C30).
    let rotated = Keys::new(NonZeroU32::MAX, [9; KEY_LENGTH], [2; KEY_LENGTH]);
    assert_eq!(
        hex(codec(2, Some(rotated)).fingerprint(&block)),
        "e170bc336ae2b0566925abeb72f4f8ea4a0c7b964929fd766d0e953cbd58198c"
    );
}

/// What the documents say, done by hand with another implementation.
#[test]
fn an_encrypted_frame_is_what_the_format_says() {
    let keys = keys(7, 1);
    let frame = encode(&mut codec(0x1234, Some(keys.clone())), &[5; BLOCK]);
    let mut header = frame[..FRAME_HEADER].to_vec();
    assert_eq!(header[..4], [1, 0x81, 1, 0]);
    let payload_length = usize::from(u16::from_le_bytes([header[4], header[5]]));
    header[8..12].fill(0);
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&header[24..32]);
    let subkey = keys.subkey(Incarnation(0x1234), 3);
    let payload = &frame[FRAME_HEADER..FRAME_HEADER + payload_length];
    let cipher = aes_gcm::Aes256Gcm::new(&subkey.into());
    let content = cipher.decrypt(&nonce.into(), Payload { msg: payload, aad: &header }).unwrap();
    let mut block = [0; BLOCK];
    assert_eq!(decompress_into(&content, &mut block).unwrap(), BLOCK);
    assert_eq!(block, [5; BLOCK]);
}

/// Frames that were written once are read for ever.
#[test]
fn golden_frames() {
    let golden = [
        (
            None,
            "0101010039000300e0c79b5d00000000040302010000000000000000000000001b0001001b010100\
             1b0201001b0301000b3f001b003f001b013f001b023f000f4000ffffffffffffffffffffffffffff\
             ff776003030303030300000000000000",
        ),
        (
            Some(keys(7, 1)),
            "01810100490003009f49ac25070000000403020100000000000000000000000033fa613ce0ed39db\
             60a8dae0df85ff374ccba8c0d5a259e30625a46cc2766773848a9c7996e01f59133f065d5ca54698\
             355656a25c91939c9d707594cf2cfd5299f75609b11acfa09c00000000000000",
        ),
    ];
    for (keys, hex) in golden {
        let frame: Vec<u8> = (0..hex.len() / 2)
            .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        check_in_log(&frame).unwrap();
        let mut block = [0; BLOCK];
        assert_eq!(codec(2, keys).decode(&frame, &mut block), Ok(BLOCK));
        assert!(block.iter().enumerate().all(|(at, byte)| *byte == (at / 16) as u8 & 3));
    }
}

#[test]
fn a_debugged_codec_shows_no_key() {
    let text = format!(
        "{:?} {:?}",
        codec(1, Some(keys(7, 1))),
        Settings { incarnation: Incarnation(1), core: 0, keys: Some(keys(7, 1)) }
    );
    assert!(!text.contains("data") && !text.contains("1, 1"), "{text}");
}
