//! Vdisks in the coordinator store: found, created, resized, deleted, each by one compare-and-swap.
//!
//! A vdisk that is deleted is first marked; its record goes when no engine serves it any more. Its
//! number is never given to another one (C3). A crash leaves a vdisk as it was, or as it should be.

use crate::dev::settings::{DATANODE_ID, HOST_ID};
use crate::dev::store::ClusterStore;
use crate::error::{Error, Result};
use cleave_control::names::check_name;
use cleave_control::records::{
    VDISK_IDS, VDISKS, VdiskRecord, VdiskState, from_value, to_value, vdisk_key,
};
use cleave_control::size::{check_vdisk_size, format_size};
use cleave_coordinator::encoding::{decode, encode};
use cleave_coordinator::records::{Counter, counter_key, owner_key};
use cleave_coordinator::{
    Answer, Operation, Outcome, StoreError, Transaction, VdiskOwner, Versioned,
};
use std::time::{SystemTime, UNIX_EPOCH};

/// A vdisk's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// What is recorded.
    pub record: VdiskRecord,
    /// Of the record.
    revision: u64,
}

/// The vdisks of the cluster whose store this is.
#[derive(Clone, Copy)]
pub struct Namespace<'a>(pub &'a ClusterStore);

impl Namespace<'_> {
    /// The vdisk of that name.
    pub fn find(self, name: &str) -> Result<Option<Found>> {
        let key = vdisk_key(name);
        match self.get(&key)? {
            None => Ok(None),
            Some(Versioned { value, revision }) => {
                let record = from_value(&key, &value)?;
                Ok(Some(Found { name: name.to_owned(), record, revision }))
            }
        }
    }

    /// All vdisks, in order of names.
    pub fn list(self) -> Result<Vec<Found>> {
        let Answer::List(listing) =
            self.0.execute(Operation::List { prefix: VDISKS.to_owned() })?
        else {
            unreachable!("a list is answered by a list")
        };
        let found = listing.entries.into_iter().map(|(key, Versioned { value, revision })| {
            let record = from_value(&key, &value)?;
            Ok(Found { name: key[VDISKS.len()..].to_owned(), record, revision })
        });
        found.collect()
    }

    /// Creates a vdisk of so many shares; each uses an identity up.
    pub fn create(self, name: &str, size: u64, encrypted: bool, shares: u16) -> Result<Found> {
        check_name(name)?;
        check_vdisk_size(size)?;
        let key = vdisk_key(name);
        let counter_key = counter_key(VDISK_IDS);
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        loop {
            if let Some(found) = self.find(name)? {
                return Err(refused(
                    name,
                    match found.record.state {
                        VdiskState::Ready => "it exists already".to_owned(),
                        VdiskState::Deleting => {
                            "it is still being deleted; try again later".to_owned()
                        }
                    },
                ));
            }
            let (counter, revision) = match self.get(&counter_key)? {
                None => (Counter { newest: 0 }, 0),
                Some(Versioned { value, revision }) => {
                    let counter = decode(&value).map_err(|error| StoreError::Malformed {
                        key: counter_key.clone(),
                        reason: error.to_string(),
                    })?;
                    (counter, revision)
                }
            };
            let id = counter.newest + 1;
            let record = VdiskRecord {
                id,
                size,
                encrypted,
                created,
                host: Some(HOST_ID),
                home: DATANODE_ID,
                state: VdiskState::Ready,
                shares,
            };
            let transaction = Transaction::new()
                .require(key.as_str(), 0)
                .require(counter_key.as_str(), revision)
                .put(key.as_str(), to_value(&record))
                .put(counter_key.as_str(), encode(&Counter { newest: newest(&record) }));
            if let Outcome::Committed(revision) = self.transact(transaction)? {
                return Ok(Found { name: name.to_owned(), record, revision });
            }
        }
    }

    /// Changes a vdisk's size; a smaller one only with consent.
    pub fn resize(self, name: &str, size: u64, accept_data_loss: bool) -> Result<Found> {
        check_vdisk_size(size)?;
        self.change(name, |record| {
            if size < record.size && !accept_data_loss {
                let (old, new) = (format_size(record.size), format_size(size));
                return Err(Error::NoConsent {
                    what: format!("shrinking {name} from {old} to {new}"),
                });
            }
            record.size = size;
            Ok(())
        })
    }

    /// Gives a vdisk to a host; or to none, which takes it from the one that serves it.
    pub fn assign(self, name: &str, host: Option<u32>) -> Result<Found> {
        self.change(name, |record| {
            record.host = host;
            Ok(())
        })
    }

    /// Whether nobody runs under the newest ownership epoch of a vdisk: its last owner has let go, or there was none.
    pub fn is_let_go(self, id: u64) -> Result<bool> {
        let key = owner_key(id);
        let Some(Versioned { value, .. }) = self.get(&key)? else { return Ok(true) };
        let owner: VdiskOwner = decode(&value).map_err(|error| {
            let reason = error.to_string();
            StoreError::Malformed { key: key.clone(), reason }
        })?;
        Ok(owner.incarnation.is_none())
    }

    /// Marks a vdisk: it is not served any more.
    pub fn begin_delete(self, name: &str) -> Result<Found> {
        self.change(name, |record| {
            record.state = VdiskState::Deleting;
            Ok(())
        })
    }

    /// Forgets a vdisk that is marked and that nobody serves.
    pub fn finish_delete(self, found: &Found) -> Result<()> {
        assert_eq!(found.record.state, VdiskState::Deleting, "a vdisk is marked first");
        let key = vdisk_key(&found.name);
        let transaction = Transaction::new()
            .require(key.as_str(), found.revision)
            .delete(key.as_str())
            .delete(owner_key(found.record.id));
        // A conflict means that somebody else has finished it.
        self.transact(transaction).map(|_| ())
    }

    fn change(self, name: &str, change: impl Fn(&mut VdiskRecord) -> Result<()>) -> Result<Found> {
        let key = vdisk_key(name);
        loop {
            let mut found = self
                .find(name)?
                .ok_or_else(|| refused(name, "there is none of that name".into()))?;
            if found.record.state == VdiskState::Deleting {
                return Err(refused(name, "it is being deleted".to_owned()));
            }
            change(&mut found.record)?;
            let transaction = Transaction::new()
                .require(key.as_str(), found.revision)
                .put(key.as_str(), to_value(&found.record));
            if let Outcome::Committed(revision) = self.transact(transaction)? {
                return Ok(Found { revision, ..found });
            }
        }
    }

    fn get(self, key: &str) -> Result<Option<Versioned>> {
        match self.0.execute(Operation::Get { key: key.to_owned() })? {
            Answer::Value(value) => Ok(value),
            other => unreachable!("a get was answered by {other:?}"),
        }
    }

    fn transact(self, transaction: Transaction) -> Result<Outcome> {
        match self.0.execute(Operation::Transact(transaction))? {
            Answer::Transacted(outcome) => Ok(outcome),
            other => unreachable!("a transaction was answered by {other:?}"),
        }
    }
}

/// The last identity of a vdisk's shares (C3).
fn newest(record: &VdiskRecord) -> u64 {
    record.id + u64::from(record.shares.max(1)) - 1
}

fn refused(name: &str, reason: String) -> Error {
    Error::Vdisk { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_coordinator::{RedbStore, StoreServer};

    fn store() -> (tempfile::TempDir, ClusterStore) {
        let folder = tempfile::tempdir().unwrap();
        let server = StoreServer::start(&folder.path().join("s"), RedbStore::in_memory()).unwrap();
        (folder, ClusterStore::Own(server))
    }

    #[test]
    fn vdisks_are_created_listed_resized_and_deleted() {
        let (_folder, store) = store();
        let namespace = Namespace(&store);
        assert_eq!(namespace.list().unwrap(), []);
        let b = namespace.create("b", 1 << 20, false, 1).unwrap();
        let a = namespace.create("a", 2 << 20, true, 1).unwrap();
        assert_eq!((b.record.id, a.record.id), (1, 2));
        assert_eq!(namespace.list().unwrap(), [a.clone(), b.clone()]);
        assert_eq!(namespace.find("a").unwrap(), Some(a));
        assert_eq!(namespace.resize("b", 4 << 20, false).unwrap().record.size, 4 << 20);
        let marked = namespace.begin_delete("b").unwrap();
        assert!(namespace.resize("b", 8 << 20, false).is_err());
        namespace.finish_delete(&marked).unwrap();
        assert_eq!(namespace.find("b").unwrap(), None);
        // Its number stays used.
        assert_eq!(namespace.create("b", 1 << 20, false, 3).unwrap().record.id, 3);
        // C3: and so do those of its shares.
        assert_eq!(namespace.create("c", 1 << 20, false, 1).unwrap().record.id, 6);
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line() {
        let (_folder, store) = store();
        let namespace = Namespace(&store);
        namespace.create("a", 2 << 20, false, 1).unwrap();
        let lines = [
            (namespace.create("a", 1 << 20, false, 1), "exists already"),
            (namespace.create("../a", 1 << 20, false, 1), "not a name"),
            (namespace.create("c", 1000, false, 1), "multiple of 4K"),
            (namespace.resize("c", 1 << 20, false), "none of that name"),
            (namespace.resize("a", 1 << 20, false), "--accept-data-loss"),
            (namespace.begin_delete("c"), "none of that name"),
        ];
        for (result, expected) in lines {
            let line = result.unwrap_err().to_string();
            assert!(line.contains(expected) && !line.contains('\n'), "{line}");
        }
        assert_eq!(namespace.resize("a", 1 << 20, true).unwrap().record.size, 1 << 20);
    }
}
