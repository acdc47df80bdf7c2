//! Identities. All of them are used once, ever (C3), except slots, which are places.

use bincode::{Decode, Encode};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        pub struct $name(pub $inner);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A virtual disk.
    VdiskId(u64)
);
id!(
    /// A 2 MiB slice of a vdisk, counted from its beginning.
    SliceIndex(u32)
);
id!(
    /// A block of a vdisk, counted from its beginning.
    BlockIndex(u64)
);
id!(
    /// Ownership epoch of a vdisk, or role epoch of a data node: grows, fences older ones.
    Epoch(u64)
);
id!(
    /// Place of a record in its slice and epoch, from 1 (C1).
    Sequence(u64)
);
id!(
    /// One start of a process, never reused (C7, C29).
    Incarnation(u64)
);
impl Incarnation {
    /// Whose grants the data node's own are: slots for shards that are written anew (C16). No process is this one.
    pub const DATANODE: Incarnation = Incarnation(0);
}
id!(
    /// A host; stays over restarts of its engine.
    HostId(u32)
);
id!(
    /// One attempt to write one stripe (C3).
    StripeId(u64)
);
id!(
    /// A drive of the pool, never given to another drive.
    DriveId(u16)
);
id!(
    /// A drive's place for one shard.
    SlotIndex(u32)
);
id!(
    /// A data node.
    DatanodeId(u16)
);
id!(
    /// Position in a data node's log: grows by one an entry, over all incarnations of the log.
    Position(u64)
);

/// A cluster's identity: random, 128 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ClusterId(pub [u8; 16]);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for ClusterId {
    type Err = crate::FormatError;
    fn from_str(text: &str) -> Result<ClusterId, crate::FormatError> {
        let malformed = crate::FormatError::Malformed("cluster identity");
        // Digits alone: integers could be parsed with a sign.
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed);
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| malformed)?;
        }
        Ok(ClusterId(id))
    }
}

/// The age of a block's content: newest wins (C2). Ordered by epoch, then sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Version {
    /// Ownership epoch.
    pub epoch: Epoch,
    /// Sequence within the slice and epoch.
    pub sequence: Sequence,
}

impl BlockIndex {
    /// The slice that the block lies in.
    pub fn slice(self) -> SliceIndex {
        let slice = self.0 / u64::from(crate::layout::SLICE_BLOCKS);
        SliceIndex(u32::try_from(slice).expect("vdisks are at most 64 TiB"))
    }

    /// Number of the block within its slice.
    pub fn within_slice(self) -> u16 {
        (self.0 % u64::from(crate::layout::SLICE_BLOCKS)) as u16
    }
}

impl SliceIndex {
    /// The slice's block of that number.
    pub fn block(self, within: u16) -> BlockIndex {
        BlockIndex(u64::from(self.0) * u64::from(crate::layout::SLICE_BLOCKS) + u64::from(within))
    }
}

#[cfg(test)]
mod tests;
