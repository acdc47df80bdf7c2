//! How a superblock is read and written before the controller runs: through the file system, or through
//! the NVMe driver. What is written is durable when the call returns.

use super::Trouble;
use crate::error::DriveProblem;
use cleave_nvme::drive::{DriveOptions, NvmeDrive};
use cleave_nvme::error::Error;
use cleave_nvme::owner::NvmeDrives;
use cleave_nvme::place::Place;
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::{Drive, DriveOperation};
use cleave_runtime_real::reactor::Reactor;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

/// Commands that a controller is given at once for a drive.
const DEPTH: u16 = 64;
/// Bytes and number of a drive's mapped buffers: ranges, several columns, whole slots.
const BUFFERS: [(usize, u16); 3] = [(16 << 10, 64), (160 << 10, 32), ((1 << 20) + (64 << 10), 16)];

/// Where a superblock lies.
pub(super) trait Medium {
    /// Fills `page` from `offset`.
    fn read(&self, offset: u64, page: &mut [u8]) -> io::Result<()>;

    /// Writes `page` at `offset`, durably.
    fn write(&self, offset: u64, page: &[u8]) -> io::Result<()>;
}

/// A file or a block device.
pub(super) struct FileMedium(File);

impl FileMedium {
    pub(super) fn open(path: &Path) -> Result<FileMedium, Trouble> {
        let opened = OpenOptions::new().read(true).write(true).open(path);
        opened.map(FileMedium).map_err(|error| Trouble::Lost(format!("its superblock: {error}")))
    }
}

impl Medium for FileMedium {
    fn read(&self, offset: u64, page: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(page, offset)
    }

    fn write(&self, offset: u64, page: &[u8]) -> io::Result<()> {
        self.0.write_all_at(page, offset)?;
        self.0.sync_all()
    }
}

/// Opens a namespace as a drive. Lost: the device is not there, or does not work.
pub(super) fn open(
    reactor: &Reactor,
    nvme: &mut NvmeDrives,
    place: Place,
) -> Result<Rc<NvmeDrive>, Trouble> {
    let options = DriveOptions { depth: DEPTH, buffers: BUFFERS.into() };
    nvme.open(place, &options, || idle(reactor)).map_err(|error| match error {
        Error::System { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            Trouble::Lost(format!("there is no PCI device {}", place.address))
        }
        // What the operator must mend.
        error @ (Error::Held(_) | Error::System { .. } | Error::Unsupported(_)) => {
            DriveProblem::Nvme(error).into()
        }
        broken => Trouble::Lost(broken.to_string()),
    })
}

/// Between two looks at a device, while the core does nothing else.
fn idle(reactor: &Reactor) {
    reactor.clock().refresh();
    std::thread::yield_now();
}

/// A namespace that is driven from here.
pub(super) struct NvmeMedium<'a> {
    pub(super) reactor: &'a Reactor,
    pub(super) drive: &'a NvmeDrive,
}

impl NvmeMedium<'_> {
    fn complete(&self, operation: DriveOperation, page: Option<&mut [u8]>) -> io::Result<()> {
        let buffer = page.as_ref().map(|page| {
            let mut buffer = self.drive.buffer(page.len());
            buffer.copy_from_slice(page);
            buffer
        });
        let (result, buffer) = self.drive.complete(operation, buffer, || idle(self.reactor));
        result.map_err(io::Error::other)?;
        if let (Some(page), Some(buffer)) = (page, buffer) {
            page.copy_from_slice(&buffer);
        }
        Ok(())
    }
}

impl Medium for NvmeMedium<'_> {
    fn read(&self, offset: u64, page: &mut [u8]) -> io::Result<()> {
        assert!(page.len().is_multiple_of(PAGE), "superblocks are pages");
        self.complete(DriveOperation::Read { offset }, Some(page))
    }

    fn write(&self, offset: u64, page: &[u8]) -> io::Result<()> {
        let mut page = page.to_vec();
        self.complete(DriveOperation::Write { offset }, Some(&mut page))?;
        self.complete(DriveOperation::Flush, None)
    }
}
