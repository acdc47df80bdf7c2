//! Certificates and keys of engines and of the cluster's authority.

use crate::input::Input;
use cleave_runtime_real::identity::{ClusterCa, Identity};

const CERTIFICATE: &str = include_str!("certificate.pem");

fn pem(label: &str, bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            let index = (word >> (18 - 6 * digit) & 63) as usize;
            text.push(if shown { DIGITS[index] as char } else { '=' });
        }
    }
    text + &format!("\n-----END {label}-----\n")
}

fn read(certificate: &str, key: &str) {
    let identity = Identity {
        certificate_pem: certificate.to_owned(),
        key_pem: key.to_owned(),
        authority_pem: certificate.to_owned(),
    };
    if let Ok(name) = identity.name() {
        assert!(!name.is_empty());
    }
    if let Ok(authority) = ClusterCa::from_pem(certificate, key) {
        assert_eq!(authority.to_pem().0, certificate);
    }
}

/// The input as text, and as what the text stands for: a certificate, a key, or both.
pub(super) fn certificates(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    read(&text, &text);
    read(&pem("CERTIFICATE", data), &pem("PRIVATE KEY", data));
    let mut input = Input(data);
    let length = usize::from(input.half());
    let certificate = input.bytes(length);
    read(&pem("CERTIFICATE", certificate), &pem("PRIVATE KEY", input.0));
}

/// A certificate: as text, and as its bytes.
pub(super) fn certificates_seeds() -> Vec<Vec<u8>> {
    let digits = CERTIFICATE.lines().filter(|line| !line.starts_with('-')).flat_map(str::bytes);
    let (mut bytes, mut word, mut bits) = (Vec::new(), 0_u32, 0);
    for digit in digits.filter(|digit| *digit != b'=') {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        word = word << 6 | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((word >> bits) as u8);
        }
    }
    vec![CERTIFICATE.as_bytes().to_vec(), bytes]
}
