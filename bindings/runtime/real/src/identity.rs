//! The cluster's certificate authority, and the certificates by which engines know each other.
//!
//! Every engine has a certificate with one DNS name, its name in the cluster, signed by the
//! cluster's own authority. A peer is who its certificate says and nothing else: addresses prove
//! nothing. Whoever holds the authority's key can be anybody, so it stays with the supervisor.
//! Certificates do not expire in practice; a cluster that must shut somebody out makes a new
//! authority.
//!
//! Keys are written by the caller, with mode 0600; [`Identity::load`] refuses others.

use crate::error::{Error, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use webpki::KeyUsage;

/// The subject of every cluster's authority. It is the same in all: authorities are told apart by
/// their keys.
const AUTHORITY_NAME: &str = "Cleave cluster authority";

/// Names are DNS labels, and these are at most this long.
const NAME_LENGTH_MAX: usize = 63;

/// A cluster's certificate authority with its private key.
pub struct ClusterCa {
    certificate_pem: String,
    key: KeyPair,
}

impl ClusterCa {
    /// A new authority.
    pub fn generate() -> Result<ClusterCa> {
        let key = KeyPair::generate().map_err(failed("the authority's key"))?;
        let certificate =
            authority().self_signed(&key).map_err(failed("the authority's certificate"))?;
        Ok(ClusterCa { certificate_pem: certificate.pem(), key })
    }

    /// An authority from what [`to_pem`](ClusterCa::to_pem) gave.
    ///
    /// # Errors
    /// One of both is malformed, or they do not belong together.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<ClusterCa> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("the authority's key"))?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(failed("the authority's certificate"))?;
        let parsed = webpki::EndEntityCert::try_from(&certificate)
            .map_err(failed("the authority's certificate"))?;
        if *parsed.subject_public_key_info() != *key.subject_public_key_info() {
            let reason = "the authority's certificate and key do not belong together";
            return Err(Error::Identity(reason.to_owned()));
        }
        Ok(ClusterCa { certificate_pem: certificate_pem.to_owned(), key })
    }

    /// The certificate and the private key. The key may only be readable by its owner.
    pub fn to_pem(&self) -> (String, String) {
        (self.certificate_pem.clone(), self.key.serialize_pem())
    }

    /// The certificate, which every member has.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A certificate and key for the engine of this name.
    ///
    /// # Errors
    /// The name is not a DNS label: lower-case letters, digits, and dashes within.
    pub fn issue(&self, name: &str) -> Result<Identity> {
        check_name(name)?;
        let key = KeyPair::generate().map_err(failed("the engine's key"))?;
        let mut parameters = CertificateParams::new(vec![name.to_owned()])
            .map_err(failed("the engine's certificate"))?;
        parameters.distinguished_name = common_name(name);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority(), &self.key);
        let certificate =
            parameters.signed_by(&key, &issuer).map_err(failed("the engine's certificate"))?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority_pem: self.certificate_pem.clone(),
        })
    }
}

impl fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterCa")
    }
}

/// What an engine proves itself with, and whom it believes.
#[derive(Clone)]
pub struct Identity {
    /// The engine's certificate, and intermediate ones if there are any.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The certificate of the cluster's authority.
    pub authority_pem: String,
}

impl Identity {
    /// Reads the three files.
    ///
    /// # Errors
    /// One is missing or malformed, they do not belong together, or others than its owner may read the key.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Identity> {
        let mode = std::fs::metadata(key).map_err(|error| unreadable(key, &error))?.permissions();
        if mode.mode() & 0o077 != 0 {
            return Err(Error::Identity(format!(
                "key file {} can be read by others; chmod 600 it, or make a new one if others \
                 may have read it",
                key.display()
            )));
        }
        let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| unreadable(path, &e));
        let identity = Identity {
            certificate_pem: read(certificate)?,
            key_pem: read(key)?,
            authority_pem: read(authority)?,
        };
        identity.name()?;
        identity.check()?;
        Ok(identity)
    }

    /// What was loaded belongs together: the authority issued the certificate, and the key is the certificate's. A
    /// file that rotted, or another cluster's, is found here and not by peers that refuse to talk.
    fn check(&self) -> Result<()> {
        let (chain, authority) = (self.chain()?, self.authority()?);
        let provider = rustls::crypto::ring::default_provider();
        let algorithms = provider.signature_verification_algorithms.all;
        let authority = webpki::anchor_from_trusted_cert(&authority)
            .map_err(failed("the authority's certificate"))?;
        let own = chain.first().ok_or_else(|| Error::Identity("no certificate".to_owned()))?;
        let parsed =
            webpki::EndEntityCert::try_from(own).map_err(failed("the engine's certificate"))?;
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            let (anchors, others) = (std::slice::from_ref(&authority), &chain[1..]);
            let now = UnixTime::now();
            parsed
                .verify_for_usage(algorithms, anchors, others, now, usage, None, None)
                .map_err(failed("the engine's certificate, by the authority's,"))?;
        }
        CertifiedKey::from_der(chain, self.key()?, &provider)
            .map_err(failed("the engine's key, with its certificate,"))?;
        Ok(())
    }

    /// The engine's name: the first DNS name in its certificate.
    pub fn name(&self) -> Result<String> {
        let chain = self.chain()?;
        let first = chain.first().ok_or_else(|| Error::Identity("no certificate".to_owned()))?;
        name_in(first).ok_or_else(|| Error::Identity("the certificate names no engine".to_owned()))
    }

    pub(crate) fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<std::result::Result<_, _>>()
            .map_err(failed("the engine's certificate"))
    }

    pub(crate) fn key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(failed("the engine's key"))
    }

    pub(crate) fn authority(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.authority_pem.as_bytes())
            .map_err(failed("the authority's certificate"))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("name", &self.name().ok()).finish_non_exhaustive()
    }
}

/// The first DNS name of a certificate.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    parsed.valid_dns_names().next().map(str::to_owned)
}

fn authority() -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = common_name(AUTHORITY_NAME);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let good = !name.is_empty()
        && name.len() <= NAME_LENGTH_MAX
        && name.chars().all(allowed)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.chars().all(|c| c.is_ascii_digit());
    if good {
        return Ok(());
    }
    Err(Error::Identity(format!(
        "{name:?} is no name for an engine; use at most {NAME_LENGTH_MAX} lower-case letters, \
         digits and dashes, such as datanode-1-a"
    )))
}

fn failed<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Identity(format!("{what} is not usable: {error}"))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::Identity(format!("{} cannot be read: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_survives_its_files_and_issues_names() {
        let ca = ClusterCa::generate().unwrap();
        let (certificate, key) = ca.to_pem();
        let again = ClusterCa::from_pem(&certificate, &key).unwrap();
        let identity = again.issue("datanode-1-a").unwrap();
        assert_eq!(identity.name().unwrap(), "datanode-1-a");
        assert_eq!(identity.authority_pem, ca.certificate_pem());
        assert!(!format!("{identity:?} {ca:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_of_another_authority_is_refused() {
        let (certificate, _) = ClusterCa::generate().unwrap().to_pem();
        let (_, key) = ClusterCa::generate().unwrap().to_pem();
        assert!(matches!(ClusterCa::from_pem(&certificate, &key), Err(Error::Identity(_))));
        assert!(matches!(ClusterCa::from_pem("", &key), Err(Error::Identity(_))));
        assert!(matches!(ClusterCa::from_pem(&certificate, "x"), Err(Error::Identity(_))));
    }

    #[test]
    fn names_are_dns_labels() {
        let ca = ClusterCa::generate().unwrap();
        for name in ["", "-a", "a-", "A", "a.b", "a b", "*", "12", &"a".repeat(64)] {
            assert!(matches!(ca.issue(name), Err(Error::Identity(_))), "{name:?}");
        }
    }

    #[test]
    fn files_are_loaded_and_open_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let identity = ClusterCa::generate().unwrap().issue("host-1").unwrap();
        std::fs::write(path("certificate"), &identity.certificate_pem).unwrap();
        std::fs::write(path("key"), &identity.key_pem).unwrap();
        std::fs::write(path("authority"), &identity.authority_pem).unwrap();
        let load = || Identity::load(&path("certificate"), &path("key"), &path("authority"));
        let set = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(path("key"), mode).unwrap();
        };
        set(0o640);
        assert!(load().unwrap_err().to_string().contains("chmod 600"));
        set(0o600);
        assert_eq!(load().unwrap().name().unwrap(), "host-1");
        std::fs::remove_file(path("authority")).unwrap();
        assert!(load().unwrap_err().to_string().contains("cannot be read"));
    }
}
