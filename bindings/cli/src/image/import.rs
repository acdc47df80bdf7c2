//! Writing an image into a vdisk: afterwards the vdisk reads as the image, followed by zeros.
//!
//! Holes of the file and chunks of zeros become write-zeroes, which bring no data; a vdisk that was just
//! created is zeros already, so nothing is sent for them.

use super::progress::Progress;
use super::qemu::{self, Format};
use super::transfer::{CHUNK, Step, Transfer, Work};
use super::{is_zero, socket};
use crate::error::{Error, Result, file};
use cleave_control::size::{VDISK_BYTES_STEP, check_vdisk_size};
use cleave_control::status::VdiskEntry;
use cleave_front_end::SECTOR;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a new vdisk may take until it is served.
const SERVED: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is asked of an import.
pub struct Import {
    /// The image.
    pub image: PathBuf,
    /// The vdisk.
    pub name: String,
    /// The image's format; found out when it is not given.
    pub format: Option<Format>,
    /// Where a raw copy of another format may lie meanwhile; beside the image when it is not given.
    pub scratch: Option<PathBuf>,
    /// An existing vdisk may lose what it holds.
    pub accept_data_loss: bool,
    /// Say nothing.
    pub quiet: bool,
}

/// Imports an image. `find` gives the vdisk when it exists, `create` makes it with a size.
pub fn import(
    import: &Import,
    find: impl Fn() -> Result<Option<VdiskEntry>>,
    create: impl FnOnce(u64) -> Result<()>,
) -> Result<()> {
    let raw = qemu::open_raw(&import.image, import.format, import.scratch.as_deref())?;
    let image = Image::open(raw.path())?;
    let (vdisk, is_new) = match find()? {
        Some(_) if !import.accept_data_loss => {
            let what = format!("importing into {}, which exists,", import.name);
            return Err(Error::NoConsent { what });
        }
        Some(found) => (found, false),
        None => {
            let size = image.length.max(1).next_multiple_of(VDISK_BYTES_STEP);
            check_vdisk_size(size)?;
            create(size)?;
            (served(&import.name, &find)?, true)
        }
    };
    let name = &vdisk.name;
    let Some(path) = socket(&vdisk)? else {
        let reason = "it is not served; look at `cleave status`".to_owned();
        return Err(Error::Vdisk { name: name.clone(), reason });
    };
    if image.length > vdisk.size {
        let reason = format!(
            "it has {} bytes and the image {}; resize it first, or import into a new vdisk",
            vdisk.size, image.length
        );
        return Err(Error::Vdisk { name: name.clone(), reason });
    }
    let mut transfer = Transfer::connect(name, Path::new(path))?;
    let properties = transfer.properties()?;
    let size = properties.sectors * SECTOR as u64;
    let zero_max = properties.zero_sectors_max * SECTOR as u64;
    let progress = Progress::new("imported", size, import.quiet);
    let mut writer = Writer { image, size, zero_max, is_new, at: 0, hole_until: 0, progress };
    transfer.run(&mut writer)?;
    writer.progress.end();
    Ok(())
}

/// Waits until a vdisk that was just created is served.
fn served(name: &str, find: &impl Fn() -> Result<Option<VdiskEntry>>) -> Result<VdiskEntry> {
    let deadline = Instant::now() + SERVED;
    loop {
        if let Some(found) = find()?.filter(|vdisk| vdisk.socket.is_some()) {
            return Ok(found);
        }
        if Instant::now() > deadline {
            let seconds = SERVED.as_secs();
            let reason = format!("it is not served after {seconds} s; look at `cleave status`");
            return Err(Error::Vdisk { name: name.to_owned(), reason });
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// A raw image: a file, or a block device.
struct Image {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Image {
    fn open(path: &Path) -> Result<Image> {
        let opened = File::open(path).map_err(file("open", path))?;
        let kind = opened.metadata().map_err(file("look at", path))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let reason = "it is neither a file nor a block device".to_owned();
            return Err(Error::Image { path: path.to_owned(), reason });
        }
        let length = rustix::fs::seek(&opened, SeekFrom::End(0)).map_err(file("measure", path))?;
        Ok(Image { path: path.to_owned(), file: opened, length })
    }

    /// Where data begins from `at` on; the end of the image when there is none.
    fn data_from(&self, at: u64) -> Result<u64> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
            Ok(found) => Ok(found.min(self.length)),
            Err(Errno::NXIO) => Ok(self.length),
            // A device, or a file system that does not know: everything is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(error) => Err(file("read", &self.path)(error)),
        }
    }

    /// Fills `buffer` from `at`; zeros behind the end.
    fn read(&self, at: u64, buffer: &mut [u8]) -> Result<()> {
        let inside = self.length.saturating_sub(at).min(buffer.len() as u64) as usize;
        self.file.read_exact_at(&mut buffer[..inside], at).map_err(file("read", &self.path))?;
        buffer[inside..].fill(0);
        Ok(())
    }
}

/// An import on its way.
struct Writer {
    image: Image,
    /// The vdisk's bytes.
    size: u64,
    /// Most bytes of a write-zeroes.
    zero_max: u64,
    /// It holds nothing but zeros.
    is_new: bool,
    at: u64,
    /// The file has no data before this.
    hole_until: u64,
    progress: Progress,
}

impl Writer {
    /// Zeros from `at` on, at most up to `end`; `None` when nothing has to be sent for them.
    fn zeros(&mut self, end: u64) -> Option<Step> {
        let start = self.at;
        if self.is_new {
            self.at = end;
            self.progress.add(end - start, end - start);
            return None;
        }
        self.at = end.min(start + self.zero_max);
        Some(Step::Zero(start, self.at - start))
    }
}

impl Work for Writer {
    fn next(&mut self, buffer: &mut [u8]) -> Result<Option<Step>> {
        while self.at < self.size {
            if self.at >= self.hole_until {
                let inside = self.at < self.image.length;
                let data = if inside { self.image.data_from(self.at)? } else { self.size };
                self.hole_until = match data < self.image.length {
                    // Whole chunks only, so that data is written in as few requests as may be.
                    true => data / CHUNK as u64 * CHUNK as u64,
                    false => self.size,
                };
            }
            // A device that cannot make zeros is written zeros.
            let zeros_are_cheap = self.is_new || self.zero_max > 0;
            if self.at < self.hole_until && zeros_are_cheap {
                match self.zeros(self.hole_until) {
                    Some(step) => return Ok(Some(step)),
                    None => continue,
                }
            }
            let length = (CHUNK as u64).min(self.size - self.at) as usize;
            let chunk = &mut buffer[..length];
            self.image.read(self.at, chunk)?;
            if is_zero(chunk) && zeros_are_cheap {
                match self.zeros(self.at + length as u64) {
                    Some(step) => return Ok(Some(step)),
                    None => continue,
                }
            }
            let start = self.at;
            self.at += length as u64;
            return Ok(Some(Step::Write(start, length)));
        }
        Ok(None)
    }

    fn done(&mut self, step: Step, _: &[u8]) -> Result<()> {
        match step {
            Step::Write(_, length) => self.progress.add(length as u64, 0),
            Step::Zero(_, length) => self.progress.add(length, length),
            Step::Read(..) => unreachable!("an import reads nothing"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
