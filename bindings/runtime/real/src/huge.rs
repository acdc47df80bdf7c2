//! Huge pages for large memory that lives long: the log's chunks.
//!
//! The memory is the allocator's as before; the kernel is asked to back it with huge pages (transparent
//! ones, 2 MiB), which it does over time (khugepaged) where chunks of 1 MiB lie side by side. Where there
//! are none everything works on normal pages, with one warning a process.

use rustix::mm::{Advice, madvise};
use rustix::param::page_size;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::Once;

static WARNED: Once = Once::new();

/// Asks for huge pages behind this memory, with all the pages that it touches. Its content stays.
pub fn advise(memory: &mut [MaybeUninit<u8>]) {
    match advised(memory) {
        Ok(()) if is_off() => warn("transparent huge pages are switched off"),
        Ok(()) => {}
        Err(error) => warn(&error.to_string()),
    }
}

fn advised(memory: &mut [MaybeUninit<u8>]) -> rustix::io::Result<()> {
    if memory.is_empty() {
        return Ok(());
    }
    let before = memory.as_ptr().addr() % page_size();
    let length = (before + memory.len()).next_multiple_of(page_size());
    let start = memory.as_mut_ptr().wrapping_byte_sub(before).cast::<c_void>();
    // SAFETY: the range is the whole pages around memory that the caller borrows, so all of them are
    // mapped. This advice changes neither their content nor whether they may be accessed, only which pages
    // the kernel backs them with; that holds for neighbours on the first and last page, too.
    unsafe { madvise(start, length, Advice::LinuxHugepage) }
}

/// Whether the system never gives any; the kernel takes the advice all the same.
fn is_off() -> bool {
    let mode = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    mode.is_ok_and(|mode| mode.contains("[never]"))
}

fn warn(reason: &str) {
    WARNED.call_once(|| {
        tracing::warn!(
            "the log uses normal pages, which costs some speed: {reason}; set \
             /sys/kernel/mm/transparent_hugepage/enabled to madvise"
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_stays_and_any_memory_may_be_advised() {
        let mut memory: Vec<u8> = (0..5 << 20).map(|index| (index % 251) as u8).collect();
        let expected = memory.clone();
        for (start, end) in [(0, 5 << 20), (4097, 3 << 20), (100, 101), (7, 7)] {
            let range = &mut memory[start..end];
            let pointer = range.as_mut_ptr().cast::<MaybeUninit<u8>>();
            // SAFETY: initialised bytes seen as perhaps uninitialised ones, which advise only looks at.
            let range = unsafe { std::slice::from_raw_parts_mut(pointer, end - start) };
            advise(range);
        }
        assert!(memory == expected);
        let mut spare: Vec<u8> = Vec::with_capacity(1 << 20);
        advise(spare.spare_capacity_mut());
        spare.resize(1 << 20, 3);
        assert!(spare.iter().all(|byte| *byte == 3));
    }
}
