//! Drives of a cluster that are NVMe namespaces: formatted and looked at through the driver in userspace,
//! before their controller's process takes them.
//!
//! What a namespace holds is lost only when the operator said so, or when its first mebibyte is all zeros.

use super::{Drive, Owner, check, superblocks};
use crate::error::{Error, Result};
use cleave_format::superblock::{COPIES, SUPERBLOCK};
use cleave_nvme::drive::{DriveOptions, NvmeDrive};
use cleave_nvme::owner::NvmeDrives;
use cleave_nvme::place::Place;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::drives::{Drive as _, DriveOperation};
use cleave_runtime::time::Clock;
use cleave_runtime_real::clock::RealClock;
use std::path::PathBuf;
use std::rc::Rc;

/// What is looked at, and erased, at the beginning of a namespace.
const BEGINNING: usize = 1 << 20;

/// The controllers, while this process has them.
struct Taken {
    clock: Rc<RealClock>,
    nvme: NvmeDrives,
}

impl Taken {
    fn new() -> Taken {
        let clock = Rc::new(RealClock::new());
        let nvme = NvmeDrives::new(Rc::clone(&clock) as Rc<dyn Clock>);
        Taken { clock, nvme }
    }

    fn open(&mut self, place: Place) -> Result<Rc<NvmeDrive>> {
        let options = DriveOptions { depth: 1, buffers: vec![(BEGINNING, 1)] };
        let clock = Rc::clone(&self.clock);
        Ok(self.nvme.open(place, &options, || idle(&clock))?)
    }

    fn complete(
        &self,
        number: u16,
        drive: &NvmeDrive,
        operation: DriveOperation,
        buffer: Option<Buffer>,
    ) -> Result<Option<Buffer>> {
        let (result, buffer) = drive.complete(operation, buffer, || idle(&self.clock));
        let path = PathBuf::from(drive.controller().name());
        result.map_err(|error| Error::Drive { number, path, reason: error.to_string() })?;
        Ok(buffer)
    }

    /// Lets the engines have them.
    fn give_up(self) {
        self.nvme.shut_down(|| idle(&self.clock));
    }
}

fn idle(clock: &RealClock) {
    clock.refresh();
    std::thread::yield_now();
}

/// Formats the namespaces, durably.
pub fn create(owner: Owner, places: &[Place], erase: bool) -> Result<Vec<Drive>> {
    let mut taken = Taken::new();
    let mut drives = Vec::new();
    for (number, place) in (0..).zip(places) {
        let opened = taken.open(*place)?;
        let path = PathBuf::from(place.to_string());
        let read = DriveOperation::Read { offset: 0 };
        let beginning = taken.complete(number, &opened, read, Some(opened.buffer(BEGINNING)))?;
        let mut beginning = beginning.expect("a read gives its buffer back");
        if beginning.iter().any(|byte| *byte != 0) {
            if !erase {
                let reason = "it is not empty; add --erase-drives if what it holds is to be lost";
                return Err(Error::Drive { number, path, reason: reason.to_owned() });
            }
            beginning.fill(0);
            let write = DriveOperation::Write { offset: 0 };
            taken.complete(number, &opened, write, Some(beginning))?;
            taken.complete(number, &opened, DriveOperation::Flush, None)?;
        }
        let (drive, superblocks) = superblocks(owner, number, &path, opened.capacity())?;
        for superblock in superblocks {
            let mut page = opened.buffer(SUPERBLOCK);
            page.copy_from_slice(&superblock.encode());
            let write = DriveOperation::Write { offset: superblock.copy_offset() };
            taken.complete(number, &opened, write, Some(page))?;
            taken.complete(number, &opened, DriveOperation::Flush, None)?;
        }
        drives.push(drive);
    }
    taken.give_up();
    Ok(drives)
}

/// Looks at the drives of a cluster that exists. The numbers of those whose controllers are missing.
pub fn check_all(owner: Owner, drives: &[(&Drive, Place)]) -> Result<Vec<u16>> {
    let mut taken = Taken::new();
    let mut missing = Vec::new();
    for (drive, place) in drives {
        if !place.address.path().exists() {
            missing.push(drive.number);
            continue;
        }
        let opened = taken.open(*place)?;
        let mut copies = [Vec::new(), Vec::new()];
        for (index, copy) in copies.iter_mut().enumerate() {
            let read = DriveOperation::Read { offset: (index * SUPERBLOCK) as u64 };
            let buffer = Some(opened.buffer(SUPERBLOCK));
            let page = taken.complete(drive.number, &opened, read, buffer)?;
            *copy = page.expect("a read gives its buffer back").to_vec();
        }
        const { assert!(COPIES == 2) };
        check(owner, drive, &copies, opened.capacity())?;
    }
    taken.give_up();
    Ok(missing)
}
