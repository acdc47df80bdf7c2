//! The contract's operations and revisions as etcd's, and back.

use cleave_coordinator::contract::{
    Change, Changed, Condition, ENTRY_BYTES, LIST_BYTES_MAX, LeaseId, Listing, Outcome, StoreError,
    Transaction, Versioned,
};
use etcd_client::{
    Compare, CompareOp, Event, EventType, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use std::time::Duration;

/// The contract's revision of etcd's.
pub fn revision_of(etcd: i64) -> u64 {
    u64::try_from(etcd).unwrap_or(0).saturating_sub(1)
}

/// etcd's revision of the contract's; of a key, for which 0 means absent, too.
pub fn key_revision(revision: u64) -> i64 {
    if revision == 0 { 0 } else { etcd_revision(revision) }
}

/// etcd's revision of the contract's.
pub fn etcd_revision(revision: u64) -> i64 {
    i64::try_from(revision).map_or(i64::MAX, |revision| revision.saturating_add(1))
}

/// etcd's time to live, in seconds, that lasts for a lease's duration.
pub fn lease_seconds(duration: Duration) -> i64 {
    let seconds = duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A transaction with its keys below the prefix.
pub fn transaction(prefix: &str, transaction: &Transaction) -> Txn {
    let key = |key: &str| format!("{prefix}{key}");
    let compare = |condition: &Condition| {
        let revision = key_revision(condition.revision);
        Compare::mod_revision(key(&condition.key), CompareOp::Equal, revision)
    };
    let change = |change: &Change| match &change.value {
        Some(value) => {
            let lease =
                change.lease.map(|lease| PutOptions::new().with_lease(lease.0.cast_signed()));
            TxnOp::put(key(&change.key), value.clone(), lease)
        }
        None => TxnOp::delete(key(&change.key), None),
    };
    let conditions: Vec<Compare> = transaction.conditions.iter().map(compare).collect();
    let changes: Vec<TxnOp> = transaction.changes.iter().map(change).collect();
    Txn::new().when(conditions).and_then(changes)
}

/// How a transaction ended, and which of its changes changed something.
pub fn outcome(transaction: &Transaction, response: &TxnResponse) -> (Outcome, Vec<String>) {
    if !response.succeeded() {
        return (Outcome::Conflict, Vec::new());
    }
    let revision = revision_of(response.header().map_or(0, |header| header.revision()));
    let responses = response.op_responses();
    let effective = transaction.changes.iter().zip(responses).filter(|(_, response)| {
        // Deleting what is not there is no event for a watch.
        !matches!(response, TxnOpResponse::Delete(deleted) if deleted.deleted() == 0)
    });
    (Outcome::Committed(revision), effective.map(|(change, _)| change.key.clone()).collect())
}

/// A key's value, and when it was changed.
pub fn versioned(found: &KeyValue) -> Versioned {
    Versioned { value: found.value().to_vec(), revision: revision_of(found.mod_revision()) }
}

/// A listing, as long as the contract allows.
pub fn listing(prefix: &str, revision: i64, found: &[KeyValue]) -> Result<Listing, StoreError> {
    let bytes: usize = found
        .iter()
        .map(|one| one.key().len() - prefix.len() + one.value().len() + ENTRY_BYTES)
        .sum();
    if bytes > LIST_BYTES_MAX {
        let what = format!("a list of {bytes} bytes is too long");
        return Err(StoreError::Invalid(what));
    }
    let entry = |one: &KeyValue| Ok((key_of(prefix, one.key())?, versioned(one)));
    let entries = found.iter().map(entry).collect::<Result<_, StoreError>>()?;
    Ok(Listing { revision: revision_of(revision), entries })
}

/// What a watch reports of events that came together: each transaction's once.
pub fn changes(prefix: &str, events: &[Event]) -> Result<Vec<Changed>, StoreError> {
    let mut changes: Vec<Changed> = Vec::new();
    for event in events {
        let Some(found) = event.kv() else { continue };
        let revision = revision_of(found.mod_revision());
        let put = event.event_type() == EventType::Put;
        let value = put.then(|| found.value().to_vec());
        let lease = (put && found.lease() != 0).then(|| LeaseId(found.lease().cast_unsigned()));
        let change = Change { key: key_of(prefix, found.key())?, value, lease };
        match changes.last_mut() {
            Some(last) if last.revision == revision => last.changes.push(change),
            _ => changes.push(Changed { revision, changes: vec![change] }),
        }
    }
    Ok(changes)
}

fn key_of(prefix: &str, key: &[u8]) -> Result<String, StoreError> {
    let key = key.strip_prefix(prefix.as_bytes()).and_then(|key| std::str::from_utf8(key).ok());
    key.map(str::to_owned).ok_or_else(|| {
        let reason = "another program wrote it".to_owned();
        StoreError::Malformed { key: prefix.to_owned(), reason }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_last_no_shorter_than_asked_for() {
        let seconds = |millis| lease_seconds(Duration::from_millis(millis));
        assert_eq!((seconds(1), seconds(999), seconds(1000), seconds(1001)), (1, 1, 1, 2));
        assert_eq!(lease_seconds(Duration::MAX), i64::MAX);
    }

    #[test]
    fn revisions_go_there_and_back() {
        // An empty etcd is at revision 1.
        assert_eq!(revision_of(1), 0);
        for revision in [1, 2, 99, 1 << 40] {
            assert_eq!(revision_of(etcd_revision(revision)), revision);
            assert_eq!(revision_of(key_revision(revision)), revision);
        }
        // Absent is 0 on both sides.
        assert_eq!((key_revision(0), etcd_revision(0)), (0, 1));
        assert_eq!(etcd_revision(u64::MAX), i64::MAX);
        assert_eq!(revision_of(-3), 0);
    }
}
