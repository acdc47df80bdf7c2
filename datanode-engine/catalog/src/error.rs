//! Why a catalog cannot be opened or used.

use std::path::PathBuf;

/// An error of the catalog. After one of a running catalog nothing of the failed transaction is in
/// it; its owner stops, and opens it again.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Another process has it open.
    #[error("the catalog {0} is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// It is not a catalog, or damaged, or of another format.
    #[error("{path} is not a catalog that this version can read: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It belongs to another cluster or data node.
    #[error("the catalog {path} belongs to {found}, not to {wanted}; use that one's directory")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// The system refused to open it.
    #[error("cannot open the catalog {path}: {error}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("the catalog failed: {0}; check the disk that holds it")]
    Failed(String),
    /// A row does not decode: the file was changed by something else.
    #[error("the catalog's {table} has a row that cannot be read: {reason}")]
    Row {
        /// Which table.
        table: &'static str,
        /// What is wrong.
        reason: cleave_format::FormatError,
    },
    /// Rows are not in order: the file was changed by something else.
    #[error(
        "the catalog's {0} are out of order: its file is damaged; remove it, and it is copied from the peer"
    )]
    Order(&'static str),
    /// A dump of another catalog does not decode, or is of another format.
    #[error("the received catalog cannot be read: {0}")]
    Transfer(&'static str),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for CatalogError {
            fn from(error: $error) -> CatalogError {
                CatalogError::Failed(error.to_string())
            }
        })*
    };
}

from_redb!(
    redb::StorageError,
    redb::TableError,
    redb::TransactionError,
    redb::CommitError,
    redb::SetDurabilityError
);
