//! Whose device it is: its superblock is read, mended, or written for the first time.
//!
//! Never overwrites what it does not know: only a device whose beginning, end and samples between are zeros
//! is formatted, or one that is this cluster's own and has shrunk. Whatever else lies there is an error that says so.
//! To be called once for a device, by one of those that will share it, before any of them uses it.

use cleave_format::FormatError;
use cleave_format::flash::{
    FIRST_ZONE, FLASH_PAGE, FLASH_SIZE_MIN, FlashId, FlashSuperblock, choose_superblock,
};
use cleave_format::ids::ClusterId;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::drives::{DriveError, DriveIo};

/// Samples between beginning and end of a device that should be empty.
const SAMPLES: u64 = 64;

/// Why a device is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// It failed.
    #[error("{0}")]
    Drive(#[from] DriveError),
    /// It is too small.
    #[error("it has {size} bytes; flash needs at least {FLASH_SIZE_MIN}")]
    Small {
        /// Its size.
        size: u64,
    },
    /// It belongs to another cluster.
    #[error(
        "it is flash of cluster {cluster}, not of this one; clear the whole device if it may be used here"
    )]
    Foreign {
        /// Whose.
        cluster: ClusterId,
    },
    /// There is something else on it.
    #[error(
        "it is not empty and not Cleave's flash; clear it, or name another device (found something at byte {offset})"
    )]
    NotEmpty {
        /// Where something was found.
        offset: u64,
    },
    /// Both copies of its superblock are damaged, or of a newer version.
    #[error("{0}; clear the whole device if its content may be dropped")]
    Superblock(FormatError),
}

/// A device that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// What it is.
    pub superblock: FlashSuperblock,
    /// Whether it was formatted just now.
    pub formatted: bool,
}

/// Finds out what a device is, and formats it when it is empty. `device` is random: its name if it is formatted.
pub async fn prepare(
    io: &DriveIo,
    cluster: ClusterId,
    device: FlashId,
) -> Result<Prepared, PrepareError> {
    let size = io.drive().capacity();
    if size < FLASH_SIZE_MIN {
        return Err(PrepareError::Small { size });
    }
    let copies = [read_copy(io, 0).await?, read_copy(io, 1).await?];
    match choose_superblock(&copies[0], &copies[1]) {
        Ok(found) if found.cluster != cluster => {
            Err(PrepareError::Foreign { cluster: found.cluster })
        }
        // It was cut off: a cache of ours, which begins anew.
        Ok(found) if found.size > size => format(io, cluster, device, size).await,
        Ok(found) => {
            let other = 1 - (found.generation % 2) as usize;
            let intact = FlashSuperblock::decode(&copies[other]).is_ok();
            let superblock = if intact { found } else { mend(io, found).await? };
            Ok(Prepared { superblock, formatted: false })
        }
        Err(FormatError::Magic(_)) => {
            require_empty(io, size).await?;
            format(io, cluster, device, size).await
        }
        Err(error) => Err(PrepareError::Superblock(error)),
    }
}

/// One copy of the superblock. One that cannot be read is damaged, as the other may be intact; it is not empty.
async fn read_copy(io: &DriveIo, copy: u64) -> Result<Buffer, DriveError> {
    match io.read(copy * FLASH_PAGE as u64, FLASH_PAGE).await {
        Err(DriveError::Io(reason)) => {
            tracing::warn!(copy, reason, "a copy of a flash superblock cannot be read");
            let mut unreadable = Buffer::new(FLASH_PAGE);
            unreadable.fill(0xff);
            Ok(unreadable)
        }
        other => other,
    }
}

/// Writes the next generation over the damaged copy (C17).
async fn mend(io: &DriveIo, found: FlashSuperblock) -> Result<FlashSuperblock, DriveError> {
    let next = FlashSuperblock { generation: found.generation + 1, ..found };
    write(io, &next).await?;
    Ok(next)
}

/// Makes it an empty one of this cluster's. Headers of an earlier life name another device.
async fn format(
    io: &DriveIo,
    cluster: ClusterId,
    device: FlashId,
    size: u64,
) -> Result<Prepared, PrepareError> {
    let first = FlashSuperblock::for_size(cluster, device, size);
    let first = first.ok_or(PrepareError::Small { size })?;
    write(io, &first).await?;
    let superblock = FlashSuperblock { generation: 1, ..first };
    write(io, &superblock).await?;
    Ok(Prepared { superblock, formatted: true })
}

async fn write(io: &DriveIo, superblock: &FlashSuperblock) -> Result<(), DriveError> {
    let mut page = io.drive().buffer(FLASH_PAGE);
    page.copy_from_slice(&superblock.encode());
    io.write(superblock.copy_offset(), page).await?;
    io.flush().await
}

/// File systems, partition tables and volume managers leave traces in the first MiB or at the end.
async fn require_empty(io: &DriveIo, size: u64) -> Result<(), PrepareError> {
    const PIECE: u64 = 256 << 10;
    let page = FLASH_PAGE as u64;
    for offset in (0..FIRST_ZONE).step_by(PIECE as usize) {
        check_zeros(offset, &io.read(offset, PIECE as usize).await?)?;
    }
    let end = size / page * page;
    check_zeros(end - FIRST_ZONE, &io.read(end - FIRST_ZONE, FIRST_ZONE as usize).await?)?;
    for sample in 1..SAMPLES {
        let offset = size / SAMPLES * sample / page * page;
        check_zeros(offset, &io.read(offset, FLASH_PAGE).await?)?;
    }
    Ok(())
}

fn check_zeros(offset: u64, bytes: &Buffer) -> Result<(), PrepareError> {
    match bytes.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => Err(PrepareError::NotEmpty { offset: offset + at as u64 }),
    }
}
