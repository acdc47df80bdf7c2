//! Where etcd's members are, and how this process is let in.

use cleave_control::config::EtcdAccess;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a connection, and each operation on it, may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that is silent for this long is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What a store is made with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Members as `https://HOST:PORT`, or `http://` without [`authority`](EtcdConfig::authority).
    pub endpoints: Vec<String>,
    /// All keys are below this; it ends with `/`.
    pub prefix: String,
    /// PEM of the authority that signed the members' certificates.
    pub authority: Option<PathBuf>,
    /// The name in the members' certificates; without it the host of each endpoint.
    pub server_name: Option<String>,
    /// PEMs of this process's certificate and key, where members want one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name and password, where etcd's authentication is on.
    pub user: Option<(String, String)>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No member is named.
    #[error("no endpoint of etcd is given; name at least one, as https://HOST:PORT")]
    NoEndpoint,
    /// Not a member's address.
    #[error("{0:?} is no endpoint of etcd; write https://HOST:PORT")]
    Endpoint(String),
    /// TLS for some and not for others, or without an authority.
    #[error("{0} needs an authority's certificate to check it by")]
    NoAuthority(String),
    /// An authority that nothing uses: a password would go over the wire in the clear.
    #[error("{0} is not encrypted although an authority is given; write https://")]
    NotEncrypted(String),
    /// The prefix is not one.
    #[error("the prefix {0:?} must begin and end with /")]
    Prefix(String),
    /// A secret that is none.
    #[error(
        "{0} can be read by others; chmod 600 it, or make a new one if others may have read it"
    )]
    Open(PathBuf),
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl EtcdConfig {
    /// What an engine's configuration says. Reads the password.
    ///
    /// # Errors
    /// A file of secrets cannot be read, or others may read it.
    pub fn of_access(access: &EtcdAccess) -> Result<EtcdConfig, ConfigError> {
        access.key.as_deref().map_or(Ok(()), check_private)?;
        let password = access.password_file.as_deref().map(|path| {
            check_private(path)?;
            let bytes = read(path)?;
            let text = String::from_utf8_lossy(&bytes);
            Ok(text.trim_end_matches(['\r', '\n']).to_owned())
        });
        Ok(EtcdConfig {
            endpoints: access.endpoints.clone(),
            prefix: access.prefix.clone(),
            authority: Some(access.ca.clone()),
            server_name: access.server_name.clone(),
            identity: access.certificate.clone().zip(access.key.clone()),
            user: access.user.clone().zip(password.transpose()?),
        })
    }

    /// Checks it, and reads its files.
    pub(crate) fn options(&self) -> Result<ConnectOptions, ConfigError> {
        if self.endpoints.is_empty() {
            return Err(ConfigError::NoEndpoint);
        }
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("https://").or(endpoint.strip_prefix("http://"));
            let address = rest.filter(|rest| {
                let port = rest.rsplit_once(':').and_then(|(host, port)| {
                    (!host.is_empty() && !rest.contains('/')).then_some(port)
                });
                port.is_some_and(|port| port.parse::<u16>().is_ok())
            });
            if address.is_none() {
                return Err(ConfigError::Endpoint(endpoint.clone()));
            }
            match (endpoint.starts_with("https://"), &self.authority) {
                (true, None) => return Err(ConfigError::NoAuthority(endpoint.clone())),
                (false, Some(_)) => return Err(ConfigError::NotEncrypted(endpoint.clone())),
                _ => {}
            }
        }
        if self.prefix.len() < 2 || !self.prefix.starts_with('/') || !self.prefix.ends_with('/') {
            return Err(ConfigError::Prefix(self.prefix.clone()));
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(KEEP_ALIVE, PATIENCE)
            .with_keep_alive_while_idle(true)
            // A member that has lost the others serves nothing.
            .with_require_leader(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(authority) = &self.authority {
            let authority = Certificate::from_pem(read(authority)?);
            let mut tls = TlsOptions::new().ca_certificate(authority);
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            if let Some((certificate, key)) = &self.identity {
                tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(tls);
        }
        Ok(options)
    }
}

fn check_private(path: &Path) -> Result<(), ConfigError> {
    let found = std::fs::metadata(path)
        .map_err(|error| ConfigError::File { path: path.to_owned(), error })?;
    match found.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(ConfigError::Open(path.to_owned())),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| ConfigError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str, prefix: &str, authority: Option<&str>) -> EtcdConfig {
        EtcdConfig {
            endpoints: vec![endpoint.to_owned()],
            prefix: prefix.to_owned(),
            authority: authority.map(PathBuf::from),
            ..EtcdConfig::default()
        }
    }

    #[test]
    fn passwords_that_others_can_read_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "secret\n").unwrap();
        let access = EtcdAccess {
            endpoints: vec!["https://a:1".to_owned()],
            prefix: "/cleave/".to_owned(),
            ca: "/ca".into(),
            server_name: Some("etcd".to_owned()),
            certificate: None,
            key: None,
            user: Some("cleave".to_owned()),
            password_file: Some(path.clone()),
        };
        let mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        mode(0o640);
        let refused = EtcdConfig::of_access(&access).unwrap_err().to_string();
        assert!(refused.contains("can be read by others"), "{refused}");
        mode(0o600);
        let config = EtcdConfig::of_access(&access).unwrap();
        assert_eq!(config.user, Some(("cleave".to_owned(), "secret".to_owned())));
        std::fs::remove_file(&path).unwrap();
        assert!(EtcdConfig::of_access(&access).is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let said = |config: EtcdConfig| config.options().err().map(|error| error.to_string());
        assert_eq!(said(config("http://127.0.0.1:2379", "/cleave/", None)), None);
        assert_eq!(said(config("http://[::1]:2379", "/cleave/x/", None)), None);
        assert!(said(EtcdConfig::default()).unwrap().contains("at least one"));
        for endpoint in ["", "127.0.0.1:1", "http://a", "http://:1", "http://a:x", "http://a:1/b"] {
            assert!(said(config(endpoint, "/cleave/", None)).unwrap().contains("no endpoint"));
        }
        assert!(said(config("https://a:1", "/c/", None)).unwrap().contains("authority"));
        assert!(said(config("http://a:1", "/c/", Some("ca"))).unwrap().contains("encrypted"));
        assert!(said(config("https://a:1", "/c/", Some("/none"))).unwrap().contains("/none"));
        for prefix in ["", "/", "c/", "/c"] {
            assert!(said(config("http://a:1", prefix, None)).unwrap().contains("prefix"));
        }
    }
}
