//! How opening and keeping a vdisk fails, sorted by who is at fault.

use cleave_codec::CodecError;
use cleave_format::FormatError;
use cleave_format::ids::{StripeId, VdiskId};
use cleave_wire::Refusal;

/// Errors of the core's flows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The operator's: the key is another one, or none was given.
    #[error("vdisk {vdisk}: {reason}")]
    Key {
        /// The vdisk.
        vdisk: VdiskId,
        /// What the codec says, and what to do.
        reason: CodecError,
    },
    /// The operator's: vdisks only grow for now (C28).
    #[error(
        "vdisk {vdisk} has {size} bytes and can only grow: give a larger size, in multiples of 4096 bytes up to 64 TiB"
    )]
    Size {
        /// The vdisk.
        vdisk: VdiskId,
        /// Its size at present.
        size: u64,
    },
    /// Somebody else's: a newer owner took the vdisk, or it was deleted.
    #[error("vdisk {vdisk} was not given to this host: {refusal}")]
    Refused {
        /// The vdisk.
        vdisk: VdiskId,
        /// The log's reason.
        refusal: Refusal,
    },
    /// It was closed while the flow ran, or is not open.
    #[error("vdisk {vdisk} is not open here")]
    NotOpen {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// It is open already.
    #[error("vdisk {vdisk} is open here already")]
    Open {
        /// The vdisk.
        vdisk: VdiskId,
    },
    /// The pool's: more shards are lost or damaged than can be solved.
    #[error(
        "vdisk {vdisk}: stripe {stripe} cannot be read: {reason}; bring its drives back and try again"
    )]
    Unreadable {
        /// The vdisk.
        vdisk: VdiskId,
        /// The stripe.
        stripe: StripeId,
        /// What failed last.
        reason: String,
    },
    /// What came from the log or the pool is intact and not what a writer writes.
    #[error("vdisk {vdisk}: {what} cannot be used: {reason}")]
    Malformed {
        /// The vdisk.
        vdisk: VdiskId,
        /// What.
        what: &'static str,
        /// Why.
        reason: FormatError,
    },
}
