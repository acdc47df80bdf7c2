//! The namespace in the coordinator store: what the supervisor writes and the engines read.
//!
//! | Key | Record | Changed by |
//! | --- | --- | --- |
//! | `cluster` | [`ClusterRecord`] | whoever creates the cluster; raised by C31 |
//! | `vdisk/NAME` | [`VdiskRecord`] | creating, resizing, deleting |
//! | `drive/N` | [`DriveRecord`] | adding and retiring drives |
//!
//! JSON, so that a person can read a store. What the cores change in operation (`datanode/ID`,
//! `owner/ID`, counters) is in [`cleave_coordinator::records`], in the engines' own encoding.
//! Unknown fields are kept out: a newer cluster raises its format level first (C31).

use cleave_coordinator::{Outcome, StoreClient, StoreError, Transaction, Versioned};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The format level that this version writes (C31).
pub const FORMAT_LEVEL: u32 = 1;
/// Key of the [`ClusterRecord`].
pub const CLUSTER_KEY: &str = "cluster";
/// Prefix of all [`VdiskRecord`]s.
pub const VDISKS: &str = "vdisk/";
/// Prefix of all [`DriveRecord`]s.
pub const DRIVES: &str = "drive/";
/// Name of the counter that gives vdisks their ids (see [`cleave_coordinator::next_number`]).
pub const VDISK_IDS: &str = "vdisk";

/// Key of a vdisk's record.
pub fn vdisk_key(name: &str) -> String {
    format!("{VDISKS}{name}")
}

/// Key of a drive's record.
pub fn drive_key(drive: u16) -> String {
    format!("{DRIVES}{drive}")
}

/// The cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterRecord {
    /// 32 hexadecimal digits.
    pub uuid: String,
    /// Whether vdisks are encrypted unless told otherwise.
    pub encrypted: bool,
    /// Proves that a key is the cluster's without revealing it; hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_check: Option<String>,
    /// Nothing newer is written by any member (C31).
    pub format_level: u32,
}

/// Where a vdisk is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VdiskState {
    /// It is served.
    Ready,
    /// It is not served any more; what it holds is being given back.
    Deleting,
}

/// A vdisk. Who owns it is in `owner/ID`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VdiskRecord {
    /// Never given to another vdisk, also after this one is deleted (C3).
    pub id: u64,
    /// Bytes: a multiple of 4096.
    pub size: u64,
    /// Whether its blocks are encrypted. Never changes.
    pub encrypted: bool,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The host that serves it; `None`: no host does.
    pub host: Option<u32>,
    /// The data node whose log and catalog hold it (C14).
    pub home: u16,
    /// Whether it is to be served.
    pub state: VdiskState,
    /// The parts that cores own, from 1 to [`SHARES_MAX`]: each has an identity of its own, `id` and its number added.
    /// Never changes.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub shares: u16,
}

/// Most shares of a vdisk.
pub const SHARES_MAX: u16 = 16;
/// A vdisk of more bytes has several shares, unless told otherwise.
const SEVERAL_FROM: u64 = 64 << 30;
/// So many.
const SEVERAL: u16 = 4;

/// How many shares a new vdisk of this size has. Each costs a seal and a look at the catalog when the vdisk is opened,
/// map runs of its own, and an entry in what the catalog knows of each stripe; a vdisk that is small is rarely
/// more than one core can do. It goes by the size alone, so that it is the same on every machine.
pub fn shares_for(size: u64) -> u16 {
    if size > SEVERAL_FROM { SEVERAL } else { 1 }
}

fn one() -> u16 {
    1
}

fn is_one(shares: &u16) -> bool {
    *shares == 1
}

/// Whether a drive is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveRecordState {
    /// It is part of the pool.
    Configured,
    /// It is not any more, and comes back only as an empty one (C16).
    Retired,
}

/// A drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveRecord {
    /// As in its superblock: 32 hexadecimal digits.
    pub uuid: String,
    /// The data node that it belongs to.
    pub datanode: u16,
    /// Where it was found first.
    pub path: PathBuf,
    /// Bytes.
    pub capacity: u64,
    /// Whether it is to be used.
    pub state: DriveRecordState,
}

/// The bytes of a record.
pub fn to_value<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain data")
}

/// The record of a value.
pub fn from_value<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value)
        .map_err(|error| StoreError::Malformed { key: key.to_owned(), reason: error.to_string() })
}

/// Reads a record and its revision.
pub async fn get<T: DeserializeOwned>(
    client: &StoreClient,
    key: &str,
) -> Result<Option<(T, u64)>, StoreError> {
    match client.get(key).await? {
        Some(Versioned { value, revision }) => Ok(Some((from_value(key, &value)?, revision))),
        None => Ok(None),
    }
}

/// Puts a record if its key is still at `revision` (0: absent).
pub async fn put<T: Serialize>(
    client: &StoreClient,
    key: &str,
    revision: u64,
    record: &T,
) -> Result<Outcome, StoreError> {
    client.transact(Transaction::new().require(key, revision).put(key, to_value(record))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_go_by_the_size() {
        assert_eq!([1, 64 << 30, (64 << 30) + 4096, 64 << 40].map(shares_for), [1, 1, 4, 4]);
        const { assert!(SEVERAL <= SHARES_MAX) };
    }

    #[test]
    fn records_have_these_forms() {
        let vdisk = VdiskRecord {
            id: 7,
            size: 1 << 30,
            encrypted: true,
            created: 1_700_000_000,
            host: Some(1),
            home: 1,
            state: VdiskState::Ready,
            shares: 1,
        };
        let json = r#"{"id":7,"size":1073741824,"encrypted":true,"created":1700000000,"host":1,"home":1,"state":"ready"}"#;
        assert_eq!(String::from_utf8(to_value(&vdisk)).unwrap(), json);
        assert_eq!(from_value::<VdiskRecord>("vdisk/a", json.as_bytes()), Ok(vdisk.clone()));
        let several = VdiskRecord { shares: 4, ..vdisk };
        let json = r#"{"id":7,"size":1073741824,"encrypted":true,"created":1700000000,"host":1,"home":1,"state":"ready","shares":4}"#;
        assert_eq!(String::from_utf8(to_value(&several)).unwrap(), json);
        assert_eq!(from_value::<VdiskRecord>("vdisk/a", json.as_bytes()), Ok(several));
        let cluster = ClusterRecord {
            uuid: "0".repeat(32),
            encrypted: false,
            key_check: None,
            format_level: FORMAT_LEVEL,
        };
        let json = to_value(&cluster);
        assert_eq!(from_value::<ClusterRecord>(CLUSTER_KEY, &json), Ok(cluster));
        let drive = DriveRecord {
            uuid: "1".repeat(32),
            datanode: 1,
            path: "/dev/sda".into(),
            capacity: 1 << 40,
            state: DriveRecordState::Configured,
        };
        assert_eq!(from_value::<DriveRecord>("drive/0", &to_value(&drive)), Ok(drive));
        let error = from_value::<VdiskRecord>("vdisk/a", b"{\"id\":7}").unwrap_err().to_string();
        assert!(error.contains("vdisk/a") && error.contains("size"), "{error}");
        assert!(from_value::<ClusterRecord>("cluster", b"\xff").is_err());
        assert_eq!((vdisk_key("a").as_str(), drive_key(3).as_str()), ("vdisk/a", "drive/3"));
    }
}
