//! Reading a table's rows in order.
//!
//! Invariant: a walk over a table ends. The file's own checksums are not looked at on each read, so a
//! damaged tree may lead back into itself; a row that does not come after the one before is an error.

use crate::CatalogError;
use redb::{AccessGuard, Key, Range, Value};
use std::cmp::Ordering;

type Row<'a, K, V> = (AccessGuard<'a, K>, AccessGuard<'a, V>);

/// The rows of a range, until one is out of order.
pub(crate) fn ascending<'a, K: Key + 'static, V: Value + 'static>(
    table: &'static str,
    rows: Range<'a, K, V>,
) -> impl Iterator<Item = Result<Row<'a, K, V>, CatalogError>> {
    let mut last: Option<Vec<u8>> = None;
    rows.map(move |entry| {
        let (key, value) = entry?;
        {
            let known = key.value();
            let bytes = K::as_bytes(&known);
            let bytes = bytes.as_ref();
            match &mut last {
                Some(last) if K::compare(last, bytes) != Ordering::Less => {
                    return Err(CatalogError::Order(table));
                }
                Some(last) => {
                    last.clear();
                    last.extend_from_slice(bytes);
                }
                None => last = Some(bytes.to_vec()),
            }
        }
        Ok((key, value))
    })
}
