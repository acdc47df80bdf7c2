//! Whose drives they are: reading, checking and writing superblocks.

use cleave_format::FormatError;
use cleave_format::superblock::{COPIES, DriveIdentity, SUPERBLOCK, Superblock, choose};
use cleave_runtime::drives::{DriveError, DriveIo};

/// Why a drive cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// It cannot be read or written.
    #[error("its superblock cannot be read or written: {0}")]
    Drive(#[from] DriveError),
    /// It has none, or a damaged one.
    #[error("its superblock cannot be used: {0}")]
    Format(#[from] FormatError),
    /// It belongs to another cluster.
    #[error(
        "it belongs to cluster {found}, not to {wanted}; use that cluster's directory, or another drive"
    )]
    Cluster {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// It is another drive of this cluster.
    #[error("it is drive {found}, not drive {wanted}; the drives were swapped")]
    Other {
        /// Which it is.
        found: String,
        /// Which it should be.
        wanted: String,
    },
    /// It became smaller.
    #[error("it has {capacity} bytes, and had {recorded} when it was formatted")]
    Shrunk {
        /// Bytes now.
        capacity: u64,
        /// Bytes then.
        recorded: u64,
    },
    /// It is too small for even one slot.
    #[error("it has {0} bytes, too few for a drive of a pool")]
    TooSmall(u64),
}

/// Reads a drive's superblock and checks that it is the drive that is expected here.
pub async fn identify(
    io: &DriveIo,
    expected: &DriveIdentity,
) -> Result<Superblock, SuperblockError> {
    let capacity = io.drive().capacity();
    if capacity < (COPIES * SUPERBLOCK) as u64 {
        return Err(SuperblockError::TooSmall(capacity));
    }
    let copies = io.read(0, COPIES * SUPERBLOCK).await?;
    let (superblock, _) = choose(&copies[..SUPERBLOCK], &copies[SUPERBLOCK..])?;
    let found = &superblock.identity;
    if found.cluster != expected.cluster {
        let (found, wanted) = (found.cluster.to_string(), expected.cluster.to_string());
        return Err(SuperblockError::Cluster { found, wanted });
    }
    if found != expected {
        let name = |identity: &DriveIdentity| {
            let uuid: String = identity.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} (uuid {uuid}) of data node {}", identity.drive, identity.datanode)
        };
        let (found, wanted) = (name(found), name(expected));
        return Err(SuperblockError::Other { found, wanted });
    }
    if superblock.drive_size > capacity {
        let recorded = superblock.drive_size;
        return Err(SuperblockError::Shrunk { capacity, recorded });
    }
    Ok(superblock)
}

/// Makes a drive one of the pool: what was on it is forgotten. Durable when it returns (C17).
pub async fn format(io: &DriveIo, identity: DriveIdentity) -> Result<Superblock, SuperblockError> {
    let capacity = io.drive().capacity();
    let mut superblock =
        Superblock::for_size(identity, capacity).ok_or(SuperblockError::TooSmall(capacity))?;
    for generation in 0..COPIES as u64 {
        superblock.generation = generation;
        let mut page = io.drive().buffer(SUPERBLOCK);
        page.copy_from_slice(&superblock.encode());
        io.write(superblock.copy_offset(), page).await?;
        io.flush().await?;
    }
    Ok(superblock)
}
