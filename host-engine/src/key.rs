//! The cluster's data key: loaded from its file, and proved to be the cluster's.

use crate::error::HostEngineError;
use cleave_codec::{Keys, key_check_value};
use cleave_control::key_file::{KeyFileError, load_key};
use cleave_control::records::ClusterRecord;
use std::num::NonZeroU32;
use std::path::Path;

/// The number by which frames name the cluster's data key.
const KEY_ID: NonZeroU32 = NonZeroU32::MIN;

/// The keys from a file.
pub fn load(path: &Path) -> Result<Keys, KeyFileError> {
    Ok(Keys::derive(KEY_ID, load_key(path)?.bytes()))
}

/// Refuses a key that is not the cluster's, before anything is written under it.
pub fn check(
    keys: Option<&Keys>,
    path: Option<&Path>,
    cluster: &ClusterRecord,
) -> Result<(), HostEngineError> {
    match (keys, &cluster.key_check) {
        (None, _) if cluster.encrypted => Err(HostEngineError::NoKey),
        (Some(keys), Some(expected)) if !shown(keys).eq_ignore_ascii_case(expected) => {
            Err(HostEngineError::WrongKey(path.unwrap_or(Path::new("")).to_owned()))
        }
        _ => Ok(()),
    }
}

fn shown(keys: &Keys) -> String {
    key_check_value(keys).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_clusters_key_is_taken() {
        let keys = |byte| Keys::derive(KEY_ID, &[byte; 32]);
        let mut cluster = ClusterRecord {
            uuid: "0".repeat(32),
            encrypted: true,
            key_check: Some(shown(&keys(1)).to_uppercase()),
            format_level: 1,
        };
        let path = Some(Path::new("/keys/data.key"));
        check(Some(&keys(1)), path, &cluster).unwrap();
        let wrong = check(Some(&keys(2)), path, &cluster).unwrap_err().to_string();
        assert!(wrong.contains("/keys/data.key"), "{wrong}");
        assert!(matches!(check(None, None, &cluster), Err(HostEngineError::NoKey)));
        cluster.encrypted = false;
        check(None, None, &cluster).unwrap();
        assert!(check(Some(&keys(2)), path, &cluster).is_err());
    }
}
