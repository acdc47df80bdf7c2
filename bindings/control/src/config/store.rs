//! Where the coordinator store is, in an engine's configuration: Cleave's own on a socket, or etcd.

use super::{check_path, check_socket, wrong};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// How to reach etcd. Always by TLS: what lies in the store decides who may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtcdAccess {
    /// Its members, as `https://HOST:PORT`.
    pub endpoints: Vec<String>,
    /// All keys are below this; it begins and ends with `/`.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// The certificate authority of its members, PEM.
    pub ca: PathBuf,
    /// The name in the members' certificates; without it the host of each endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// This engine's certificate for etcd, where members want one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Its private key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The user, where etcd's authentication is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A file with the user's password, which nobody else may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// The store of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StorePlace {
    /// Cleave's own, at this socket.
    Socket(PathBuf),
    /// etcd.
    Etcd(EtcdAccess),
}

impl fmt::Display for StorePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorePlace::Socket(path) => write!(f, "{}", path.display()),
            StorePlace::Etcd(etcd) => {
                write!(f, "{} below {}", etcd.endpoints.join(" and "), etcd.prefix)
            }
        }
    }
}

fn default_prefix() -> String {
    "/cleave/".to_owned()
}

/// The one that is configured.
///
/// # Panics
/// When the configuration was not checked.
pub(super) fn place(socket: Option<&Path>, etcd: Option<&EtcdAccess>) -> StorePlace {
    match (socket, etcd) {
        (Some(path), None) => StorePlace::Socket(path.to_owned()),
        (None, Some(etcd)) => StorePlace::Etcd(etcd.clone()),
        _ => unreachable!("a configuration names one store"),
    }
}

pub(super) fn check(
    socket: Option<&Path>,
    etcd: Option<&EtcdAccess>,
) -> Result<(), (String, String)> {
    match (socket, etcd) {
        (Some(path), None) => check_socket("store_socket", path),
        (None, Some(etcd)) => check_etcd(etcd),
        (Some(_), Some(_)) => wrong("etcd", "store_socket is given too; name one store"),
        (None, None) => wrong("store_socket", "no store is named; give store_socket, or etcd"),
    }
}

fn check_etcd(etcd: &EtcdAccess) -> Result<(), (String, String)> {
    if etcd.endpoints.is_empty() {
        return wrong("etcd.endpoints", "there is none; write https://HOST:PORT");
    }
    for endpoint in &etcd.endpoints {
        if !endpoint.starts_with("https://") {
            return wrong("etcd.endpoints", format!("{endpoint:?} does not begin with https://"));
        }
    }
    let prefix = &etcd.prefix;
    if prefix.len() < 2 || !prefix.starts_with('/') || !prefix.ends_with('/') {
        return wrong("etcd.prefix", format!("{prefix:?} does not begin and end with /"));
    }
    check_path("etcd.ca", &etcd.ca)?;
    for (field, path) in [
        ("etcd.certificate", &etcd.certificate),
        ("etcd.key", &etcd.key),
        ("etcd.password_file", &etcd.password_file),
    ] {
        path.as_deref().map_or(Ok(()), |path| check_path(field, path))?;
    }
    if etcd.certificate.is_some() != etcd.key.is_some() {
        return wrong("etcd.certificate", "certificate and key are given together");
    }
    if etcd.user.is_some() != etcd.password_file.is_some() {
        return wrong("etcd.user", "user and password_file are given together");
    }
    Ok(())
}
