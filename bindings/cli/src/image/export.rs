//! Reading a vdisk into an image, with holes where it is zeros.
//!
//! The image has its name only when it is whole and on stable storage.

use super::progress::Progress;
use super::qemu::{self, Format};
use super::transfer::{CHUNK, Step, Transfer, Work};
use super::{is_zero, socket};
use crate::error::{Error, Result, file};
use cleave_control::status::VdiskEntry;
use cleave_front_end::SECTOR;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Holes of an image begin and end at multiples of this, the block of file systems.
const HOLE: usize = 4096;

/// What is asked of an export.
pub struct Export {
    /// The image.
    pub image: PathBuf,
    /// Its format; by the name's ending when it is not given.
    pub format: Option<Format>,
    /// An image that exists may be replaced.
    pub overwrite: bool,
    /// Say nothing.
    pub quiet: bool,
}

/// Exports a vdisk that nobody is connected to.
pub fn export(export: &Export, vdisk: &VdiskEntry) -> Result<()> {
    let name = &vdisk.name;
    let Some(path) = socket(vdisk)? else {
        let reason = "it is not served; look at `cleave status`".to_owned();
        return Err(Error::Vdisk { name: name.clone(), reason });
    };
    let image = &export.image;
    if image.exists() && (!export.overwrite || !image.is_file()) {
        let reason = match export.overwrite {
            false => "it exists; choose another name, or add --overwrite",
            true => "it exists and is no file",
        };
        return Err(Error::Image { path: image.clone(), reason: reason.to_owned() });
    }
    let format = export.format.unwrap_or_else(|| Format::of_name(image));
    qemu::require(format)?;
    let partial = Partial(qemu::beside(image, "partial"));
    let mut transfer = Transfer::connect(name, Path::new(path))?;
    let size = transfer.properties()?.sectors * SECTOR as u64;
    let created = OpenOptions::new().write(true).create(true).truncate(true).open(&partial.0);
    let created = created.map_err(file("create", &partial.0))?;
    created.set_len(size).map_err(file("resize", &partial.0))?;
    let progress = Progress::new("exported", size, export.quiet);
    let mut reader = Reader { path: &partial.0, file: &created, size, at: 0, progress };
    transfer.run(&mut reader)?;
    reader.progress.end();
    match format {
        Format::Raw => {
            created.sync_all().map_err(file("sync", &partial.0))?;
            put_in_place(&partial.0, image)
        }
        Format::Qcow2 => {
            let converted = Partial(qemu::beside(image, "partial-qcow2"));
            qemu::convert(&partial.0, Format::Raw, &converted.0, Format::Qcow2)?;
            File::open(&converted.0)
                .and_then(|file| file.sync_all())
                .map_err(file("sync", &converted.0))?;
            put_in_place(&converted.0, image)
        }
    }
}

fn put_in_place(from: &Path, image: &Path) -> Result<()> {
    fs::rename(from, image).map_err(file("create", image))?;
    let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("sync", folder))
}

/// A file that goes away when it is not given its name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is not there any more when all went well.
        let _ = fs::remove_file(&self.0);
    }
}

/// An export on its way.
struct Reader<'a> {
    path: &'a Path,
    file: &'a File,
    size: u64,
    at: u64,
    progress: Progress,
}

impl Work for Reader<'_> {
    fn next(&mut self, _: &mut [u8]) -> Result<Option<Step>> {
        let start = self.at;
        let length = (CHUNK as u64).min(self.size - start) as usize;
        self.at += length as u64;
        Ok((length > 0).then_some(Step::Read(start, length)))
    }

    fn done(&mut self, step: Step, buffer: &[u8]) -> Result<()> {
        let Step::Read(offset, length) = step else {
            unreachable!("an export only reads");
        };
        let mut zeros = 0;
        // Pieces of data that follow each other are one write.
        let mut data: Option<(usize, usize)> = None;
        for start in (0..length).step_by(HOLE) {
            let end = length.min(start + HOLE);
            if is_zero(&buffer[start..end]) {
                zeros += (end - start) as u64;
                self.write(offset, buffer, data.take())?;
            } else {
                data = Some((data.map_or(start, |(begin, _)| begin), end));
            }
        }
        self.write(offset, buffer, data)?;
        self.progress.add(length as u64, zeros);
        Ok(())
    }
}

impl Reader<'_> {
    fn write(&self, offset: u64, buffer: &[u8], data: Option<(usize, usize)>) -> Result<()> {
        let Some((start, end)) = data else { return Ok(()) };
        let written = self.file.write_all_at(&buffer[start..end], offset + start as u64);
        written.map_err(file("write", self.path))
    }
}
