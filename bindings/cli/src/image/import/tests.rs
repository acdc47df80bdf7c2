//! An import against a vdisk of memory.

use super::*;
use std::os::unix::fs::FileExt;

/// The requests of an import, carried out on `vdisk`, and how many bytes were written.
fn carry_out(mut writer: Writer, vdisk: &mut [u8]) -> u64 {
    let mut buffer = vec![0xa5; CHUNK];
    let mut written = 0;
    while let Some(step) = writer.next(&mut buffer).unwrap() {
        match step {
            Step::Write(offset, length) => {
                written += length as u64;
                vdisk[offset as usize..][..length].copy_from_slice(&buffer[..length]);
            }
            Step::Zero(offset, length) => {
                assert!(length <= writer.zero_max && length > 0);
                vdisk[offset as usize..][..length as usize].fill(0);
            }
            Step::Read(..) => panic!("an import reads nothing"),
        }
        writer.done(step, &buffer).unwrap();
    }
    assert_eq!(writer.at, writer.size);
    written
}

fn writer(path: &Path, size: u64, zero_max: u64, is_new: bool) -> Writer {
    let image = Image::open(path).unwrap();
    let progress = Progress::new("imported", size, true);
    Writer { image, size, zero_max, is_new, at: 0, hole_until: 0, progress }
}

/// A sparse image: data at these places, of these lengths.
fn image(path: &Path, length: u64, data: &[(u64, usize)]) -> Vec<u8> {
    let file = File::create(path).unwrap();
    file.set_len(length).unwrap();
    let mut content = vec![0; length as usize];
    for (number, (offset, bytes)) in data.iter().enumerate() {
        let part = &mut content[*offset as usize..][..*bytes];
        part.fill(number as u8 + 1);
        file.write_all_at(part, *offset).unwrap();
    }
    content
}

#[test]
fn the_vdisk_reads_as_the_image_and_zeros_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let chunk = CHUNK as u64;
    // A length that is no multiple of a sector; data across chunks, at the very end, and none at all.
    let length = 20 * chunk + 777;
    for data in [
        &[(0, 1), (3 * chunk - 5, 10), (10 * chunk, 3 * CHUNK), (length - 1, 1)][..],
        &[(chunk + 4096, 4096)],
        &[],
    ] {
        let content = image(&path, length, data);
        for (is_new, zero_max) in [(true, 0), (false, 0), (false, 512), (false, 5 * chunk / 2)] {
            let size = 24 * chunk + 4096;
            let mut vdisk = vec![if is_new { 0 } else { 0xee }; size as usize];
            if zero_max == 512 {
                // Many steps: a smaller vdisk will do.
                vdisk.truncate(length.next_multiple_of(4096) as usize);
            }
            let size = vdisk.len() as u64;
            let written = carry_out(writer(&path, size, zero_max, is_new), &mut vdisk);
            assert_eq!(vdisk[..content.len()], content, "{data:?}, {zero_max}");
            assert!(vdisk[content.len()..].iter().all(|byte| *byte == 0));
            if zero_max > 0 || is_new {
                assert!(written <= 10 * chunk, "{written} bytes for {data:?}");
            }
        }
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Image::open(folder.path()), Err(Error::Image { .. })));
    assert!(matches!(Image::open(&folder.path().join("none")), Err(Error::File { .. })));
}
