//! Import of images into vdisks and export of vdisks as images.
//!
//! The vdisk is reached as a guest reaches it, through its vhost-user-blk socket, so an import is as durable
//! as a guest's writes: what is reported as done is mirrored. Raw images are read and written here, with
//! holes; qcow2 goes through `qemu-img` and a raw file that exists meanwhile.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`transfer`] | requests in flight, connecting anew when the engine restarts |
//! | [`import`] | what is written where: data, holes, the rest of the vdisk |
//! | [`export`] | what is read, which of it becomes a hole |
//! | [`qemu`] | formats, and `qemu-img` |
//! | [`progress`] | lines for who waits |
//!
//! A crash in the middle leaves a vdisk with a part of the image, or a file whose name ends in `.partial`;
//! a command that is given again does all of it anew.

mod export;
mod import;
mod progress;
mod qemu;
mod transfer;

pub use export::{Export, export};
pub use import::{Import, import};
pub use qemu::Format;

use crate::error::{Error, Result};
use cleave_control::status::VdiskEntry;

/// A vdisk's socket, when it is served and nobody is connected.
fn socket(vdisk: &VdiskEntry) -> Result<Option<&str>> {
    if vdisk.attached {
        let reason = "it is attached; detach it first".to_owned();
        return Err(Error::Vdisk { name: vdisk.name.clone(), reason });
    }
    Ok(vdisk.socket.as_deref())
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    // Chunk by chunk without a branch inside, which compilers turn into wide instructions.
    let (chunks, rest) = bytes.as_chunks::<64>();
    let any = |bytes: &[u8]| bytes.iter().fold(0, |any, byte| any | byte) != 0;
    !chunks.iter().any(|chunk| any(chunk)) && !any(rest)
}

#[cfg(test)]
mod tests {
    use super::is_zero;

    #[test]
    fn a_single_bit_is_seen_wherever_it_is() {
        for length in [0, 1, 63, 64, 65, 4096, 4097] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1 << (at % 8);
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
