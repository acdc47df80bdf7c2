//! The vault: the log's image on a drive or file of its own, written on a clean stop, loaded at start (C7).
//!
//! Both header copies and two places for the body alternate, so that the only valid image is never
//! overwritten (C17); what is written is flushed before what names it (C10). Whether an image counts
//! is the store's record's to say: it is valid while the incarnation that wrote it is in the in-sync set, and
//! the compare-and-swap that makes its loader a member ends it. Only after that is it marked as
//! consumed, which gives its space back.

use crate::log::{Advice, Log, LogEntryKind, LogSettings, Rotted};
use bytes::Bytes;
use cleave_format::FormatError;
use cleave_format::control;
use cleave_format::ids::Position;
use cleave_format::layout::padded;
use cleave_format::vault::{
    VAULT_HEADER, VaultChunk, VaultHeader, VaultIdentity, VaultKind, VaultReader, VaultState,
    VaultWriter, body_offset, choose, next_generation,
};
use cleave_runtime::buffer::Buffer;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::drives::{DriveError, DriveIo};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};

/// Bytes of a read or write.
const CHUNK: usize = 1 << 20;

/// Why an image was not written or loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The vault's drive failed.
    #[error("the vault cannot be read or written: {0}")]
    Drive(#[from] DriveError),
    /// What is there is no vault, damaged, or of a newer version.
    #[error("the vault holds no usable image: {0}")]
    Format(#[from] FormatError),
    /// It belongs to another cluster or data node.
    #[error("the vault belongs to data node {datanode} of cluster {cluster}; give each its own")]
    Foreign {
        /// Whose it is.
        cluster: String,
        /// Whose it is.
        datanode: u16,
    },
    /// The log cannot be trusted: the other controller's image is used instead.
    #[error("no image is written, for {0}")]
    Rotted(#[from] Rotted),
    /// The image does not fit.
    #[error("the vault has {capacity} bytes, and the log's image needs {needed}; make it larger")]
    TooSmall {
        /// Bytes of the vault.
        capacity: u64,
        /// Bytes needed.
        needed: u64,
    },
}

/// Bytes that a vault should have for a log of that many bytes: two images with their overhead.
pub fn vault_capacity(record_bytes_max: u64, control_bytes_max: u64) -> u64 {
    let image = record_bytes_max + control_bytes_max;
    // Short records have up to a quarter of overhead.
    (2 * VAULT_HEADER as u64 + 2 * (image + image / 4)).next_multiple_of(CHUNK as u64)
}

/// Reads the newest header.
pub async fn read_header(
    io: &DriveIo,
    expected: &VaultIdentity,
) -> Result<Option<VaultHeader>, VaultError> {
    let copies = io.read(0, 2 * VAULT_HEADER).await?;
    let header = choose(&copies[..VAULT_HEADER], &copies[VAULT_HEADER..])?;
    if let Some(header) = &header {
        let found = &header.identity;
        if (found.cluster, found.datanode) != (expected.cluster, expected.datanode) {
            let (cluster, datanode) = (found.cluster.to_string(), found.datanode.0);
            return Err(VaultError::Foreign { cluster, datanode });
        }
    }
    Ok(header)
}

/// Loads the image that a header describes into an empty log. `catalog`: where the catalog here is.
pub async fn load(
    io: &DriveIo,
    header: &VaultHeader,
    settings: LogSettings,
    advice: Option<Advice>,
    catalog: Position,
) -> Result<Log, VaultError> {
    assert_eq!(header.state, VaultState::Image);
    let mut reader = VaultReader::new(header);
    let mut log = Log::new(header.identity.log_id, Position(0), settings).advised(advice);
    while let Some(offset) = reader.wanted() {
        let left = header.body_end().saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let piece = io.read(offset, length).await?;
        reader.feed(&piece);
        while let Some(entry) = reader.next_entry()? {
            let bytes = Bytes::copy_from_slice(entry.bytes);
            match entry.kind {
                VaultKind::Record => {
                    let length = bytes.len();
                    log.insert_record(entry.position, &mut Message::from(bytes), length)?;
                }
                VaultKind::Control => {
                    // The image's own check covered it until here.
                    let check = control::check(entry.position, &bytes);
                    log.insert_encoded_control(entry.position, bytes, check)?;
                }
            }
        }
    }
    reader.finish()?;
    log.finish_copy(header.next_position, catalog)?;
    Ok(log)
}

/// Writes an image of the log. When this returns, it is durable. Gives its bytes.
pub async fn write(io: &DriveIo, identity: VaultIdentity, log: &Log) -> Result<u64, VaultError> {
    let newest = read_header(io, &identity).await.or_else(|error| match error {
        // What is no vault at all may become one; a newer version's, or another's, may not.
        VaultError::Format(
            FormatError::Magic(_) | FormatError::Checksum(_) | FormatError::Malformed(_),
        ) => Ok(None),
        error => Err(error),
    })?;
    let mut length_max = 0;
    let mut from = Position(0);
    while let Some((position, entry)) = log.next_entry(from, log.next()) {
        length_max += 16 + padded(entry.bytes.len()) as u64;
        from = Position(position.0 + 1);
    }
    let offset = body_offset(newest.as_ref(), length_max);
    let needed = offset + length_max.next_multiple_of(4096);
    let capacity = io.drive().capacity();
    if needed > capacity {
        return Err(VaultError::TooSmall { capacity, needed });
    }
    let generation = next_generation(newest.as_ref());
    let mut writer = VaultWriter::<Buffer>::new(identity, generation, offset);
    let mut buffers = || io.drive().buffer(CHUNK);
    let mut full = Vec::new();
    let mut from = Position(0);
    while let Some((position, entry)) = log.next_entry(from, log.next()) {
        let kind = match entry.kind {
            LogEntryKind::Record(..) => VaultKind::Record,
            // The image's checks must not vouch for what rotted before.
            LogEntryKind::Control { .. } if !entry.is_readable(position) => {
                return Err(Rotted(position).into());
            }
            LogEntryKind::Control { .. } => VaultKind::Control,
        };
        writer.append(position, kind, &[&entry.bytes], &mut buffers, &mut full);
        from = Position(position.0 + 1);
        write_chunks(io, &mut full).await?;
    }
    let header = writer.finish(log.next(), &mut full);
    write_chunks(io, &mut full).await?;
    reached(Point::VaultPieces);
    flush(io).await?;
    reached(Point::VaultFlushed);
    write_header(io, &header).await?;
    reached(Point::VaultWritten);
    Ok(header.body_length)
}

/// Marks an image as consumed: its loader is a member of the in-sync set now.
pub async fn consume(io: &DriveIo, header: &VaultHeader) -> Result<(), VaultError> {
    write_header(io, &header.consumed()).await
}

async fn write_header(io: &DriveIo, header: &VaultHeader) -> Result<(), VaultError> {
    let mut page = io.drive().buffer(VAULT_HEADER);
    page.copy_from_slice(&header.encode());
    io.write(header.copy_offset(), page).await?;
    reached(Point::VaultHeader);
    flush(io).await
}

/// Makes durable what was written (C10).
async fn flush(io: &DriveIo) -> Result<(), VaultError> {
    match is_planted(Planted::VaultNotFlushed) {
        true => Ok(()),
        false => Ok(io.flush().await?),
    }
}

async fn write_chunks(io: &DriveIo, full: &mut Vec<VaultChunk<Buffer>>) -> Result<(), VaultError> {
    for VaultChunk { offset, length, mut buffer } in full.drain(..) {
        buffer.set_len(length);
        io.write(offset, buffer).await?;
    }
    Ok(())
}
