//! Copying a whole catalog to a controller whose own lacks more than the log holds.
//!
//! ```text
//! piece:   encoded Vec of rows, each: table number u8 | key bytes | value bytes
//! ```
//! Keys are big-endian integers, one after another; values are as stored. A dump is of one instant. A
//! restore replaces everything in one transaction, which commits with the last piece: a crash in between
//! leaves the old catalog, whole.

use crate::database::create_tables;
use crate::rows::ascending;
use crate::tables::*;
use crate::{Catalog, CatalogError};
use bincode::{Decode, Encode};
use cleave_format::ids::Position;
use redb::{ReadTransaction, ReadableDatabase, ReadableTable};
use std::ops::Bound;

/// One row. Numbers of variants are on the wire: new ones go to the end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
enum Row {
    Applied(u64),
    NewestStripe(u64),
    Stripe(u64, Vec<u8>),
    StripeOf(u64, u64),
    Grant(u64, Vec<u8>),
    Commit(u64, u64, Vec<u8>),
    Piece(u64, u32, Vec<u8>),
    Vdisk(u64, Vec<u8>),
    Host(u32, u64),
    Drive(u16, Vec<u8>),
    Held(u16, u32, bool),
}

/// Where a dump stands: the key after which the table goes on, `None` at its beginning.
#[derive(Clone, Copy)]
enum Place {
    Meta,
    Stripes(Option<u64>),
    StripesOf(Option<(u64, u64)>),
    Grants(Option<u64>),
    Commits(Option<(u64, u64)>),
    Pieces(Option<(u64, u32)>),
    Vdisks(Option<u64>),
    Hosts(Option<u32>),
    Drives(Option<u16>),
    Held(Option<(u16, u32)>),
    End,
}

/// A dump of the catalog as it was when the dump began; the catalog goes on meanwhile.
pub struct Dump {
    read: ReadTransaction,
    place: Place,
}

fn after<K>(key: Option<K>) -> (Bound<K>, Bound<K>) {
    (key.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// Takes rows of one table until the piece is full. Gives the place to go on at.
macro_rules! take {
    ($self:ident, $rows:ident, $bytes:ident, $max:ident, $table:ident, $from:ident, $this:path, $then:expr,
     |$key:ident, $value:ident| $row:expr, $weight:expr) => {{
        let table = $self.read.open_table($table)?;
        let mut place = $then;
        for entry in ascending("rows", table.range(after($from))?) {
            let (key, value) = entry?;
            let ($key, $value) = (key.value(), value.value());
            $bytes += $weight;
            $rows.push($row);
            if $bytes >= $max {
                place = $this(Some($key));
                break;
            }
        }
        place
    }};
}

impl Dump {
    /// The next piece, of about `bytes_max` bytes; `None` after the last.
    pub fn next_piece(&mut self, bytes_max: usize) -> Result<Option<Vec<u8>>, CatalogError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max {
            self.place = match self.place {
                Place::End => break,
                Place::Meta => {
                    let meta = self.read.open_table(META)?;
                    let word = |key| -> Result<u64, CatalogError> {
                        Ok(meta.get(key)?.map_or(0, |found| found.value()))
                    };
                    rows.push(Row::Applied(word(APPLIED)?));
                    rows.push(Row::NewestStripe(word(NEWEST_STRIPE)?));
                    Place::Stripes(None)
                }
                Place::Stripes(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    STRIPES,
                    from,
                    Place::Stripes,
                    Place::StripesOf(None),
                    |key, value| Row::Stripe(key, value.to_vec()),
                    value.len() + 24
                ),
                Place::StripesOf(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    STRIPES_OF,
                    from,
                    Place::StripesOf,
                    Place::Grants(None),
                    |key, _value| Row::StripeOf(key.0, key.1),
                    24
                ),
                Place::Grants(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    GRANTS,
                    from,
                    Place::Grants,
                    Place::Commits(None),
                    |key, value| Row::Grant(key, value.to_vec()),
                    value.len() + 24
                ),
                Place::Commits(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    COMMITS,
                    from,
                    Place::Commits,
                    Place::Pieces(None),
                    |key, value| Row::Commit(key.0, key.1, value.to_vec()),
                    value.len() + 32
                ),
                Place::Pieces(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    PIECES,
                    from,
                    Place::Pieces,
                    Place::Vdisks(None),
                    |key, value| Row::Piece(key.0, key.1, value.to_vec()),
                    value.len() + 32
                ),
                Place::Vdisks(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    VDISKS,
                    from,
                    Place::Vdisks,
                    Place::Hosts(None),
                    |key, value| Row::Vdisk(key, value.to_vec()),
                    value.len() + 24
                ),
                Place::Hosts(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    HOSTS,
                    from,
                    Place::Hosts,
                    Place::Drives(None),
                    |key, value| Row::Host(key, value),
                    16
                ),
                Place::Drives(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    DRIVES,
                    from,
                    Place::Drives,
                    Place::Held(None),
                    |key, value| Row::Drive(key, value.to_vec()),
                    value.len() + 16
                ),
                Place::Held(from) => take!(
                    self,
                    rows,
                    bytes,
                    bytes_max,
                    HELD,
                    from,
                    Place::Held,
                    Place::End,
                    |key, value| Row::Held(key.0, key.1, value),
                    16
                ),
            };
        }
        Ok((!rows.is_empty()).then(|| cleave_format::encode(&rows)))
    }
}

impl Catalog {
    /// Begins a dump.
    pub fn dump(&self) -> Result<Dump, CatalogError> {
        Ok(Dump { read: self.database.begin_read()?, place: Place::Meta })
    }

    /// Begins to replace everything by a dump; one that had begun is given up. Until
    /// [`restore_finish`](Catalog::restore_finish) reads see the old catalog, and nothing may be applied.
    pub fn restore_begin(&mut self) -> Result<(), CatalogError> {
        self.restore_abandon()?;
        let write = self.database.begin_write()?;
        write.delete_table(STRIPES)?;
        write.delete_table(STRIPES_OF)?;
        write.delete_table(GRANTS)?;
        write.delete_table(COMMITS)?;
        write.delete_table(PIECES)?;
        write.delete_table(VDISKS)?;
        write.delete_table(HOSTS)?;
        write.delete_table(DRIVES)?;
        write.delete_table(HELD)?;
        create_tables(&write)?;
        self.restoring = Some(write);
        Ok(())
    }

    /// Gives a restore up; the old catalog stays.
    pub fn restore_abandon(&mut self) -> Result<(), CatalogError> {
        match self.restoring.take() {
            Some(write) => Ok(write.abort()?),
            None => Ok(()),
        }
    }

    /// Adds one piece of the dump. Errors leave the restore to be given up.
    pub fn restore_piece(&mut self, piece: &[u8]) -> Result<(), CatalogError> {
        let write = self.restoring.as_ref().ok_or(CatalogError::Transfer("no restore began"))?;
        let rows: Vec<Row> = cleave_format::decode(piece)
            .map_err(|_| CatalogError::Transfer("a piece does not decode"))?;
        let mut meta = write.open_table(META)?;
        let mut stripes = write.open_table(STRIPES)?;
        let mut stripes_of = write.open_table(STRIPES_OF)?;
        let mut grants = write.open_table(GRANTS)?;
        let mut commits = write.open_table(COMMITS)?;
        let mut pieces = write.open_table(PIECES)?;
        let mut vdisks = write.open_table(VDISKS)?;
        let mut hosts = write.open_table(HOSTS)?;
        let mut drives = write.open_table(DRIVES)?;
        let mut held = write.open_table(HELD)?;
        for row in rows {
            match row {
                Row::Applied(position) => drop(meta.insert(APPLIED, position)?),
                Row::NewestStripe(stripe) => drop(meta.insert(NEWEST_STRIPE, stripe)?),
                Row::Stripe(stripe, value) => drop(stripes.insert(stripe, value.as_slice())?),
                Row::StripeOf(vdisk, stripe) => drop(stripes_of.insert((vdisk, stripe), ())?),
                Row::Grant(stripe, value) => drop(grants.insert(stripe, value.as_slice())?),
                Row::Commit(vdisk, position, value) => {
                    drop(commits.insert((vdisk, position), value.as_slice())?);
                }
                Row::Piece(vdisk, group, value) => {
                    drop(pieces.insert((vdisk, group), value.as_slice())?);
                }
                Row::Vdisk(vdisk, value) => drop(vdisks.insert(vdisk, value.as_slice())?),
                Row::Host(host, incarnation) => drop(hosts.insert(host, incarnation)?),
                Row::Drive(drive, value) => drop(drives.insert(drive, value.as_slice())?),
                Row::Held(drive, slot, left) => drop(held.insert((drive, slot), left)?),
            }
        }
        Ok(())
    }

    /// Makes the restored catalog the current one, durably.
    pub fn restore_finish(&mut self) -> Result<Position, CatalogError> {
        let write = self.restoring.take().ok_or(CatalogError::Transfer("no restore began"))?;
        let applied = write.open_table(META)?.get(APPLIED)?.map_or(0, |found| found.value());
        write.commit()?;
        self.applied = Position(applied);
        Ok(self.applied)
    }
}
