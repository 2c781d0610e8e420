//! What a certificate says.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::name::cluster_of;
use super::{Error, NodeName};

/// What of a certificate matters here. Reading it proves nothing: whose signature it bears is judged elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whom it is for, as a distinguished name.
    pub subject: String,
    /// Who signed it, as a distinguished name.
    pub issuer: String,
    /// The node that it names: none if it names none, more than one, or anything besides.
    pub node: Option<NodeName>,
    /// The cluster: of its node, or, with an authority's certificate, the one whose names it may sign.
    pub cluster: Option<u32>,
    /// Whether it may sign others.
    pub authority: bool,
    /// It is good from here on.
    pub not_before: SystemTime,
    /// It is good up to here.
    pub not_after: SystemTime,
    /// SHA-256 of its DER form.
    pub fingerprint: [u8; 32],
}

impl Certificate {
    /// Reads the DER form (RFC 5280).
    ///
    /// # Errors
    /// What keeps it from being a certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, String> {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| format!("no certificate: {error}"))?;
        if !rest.is_empty() {
            return Err(format!("{} bytes follow the certificate", rest.len()));
        }
        let names = parsed.subject_alternative_name().map_err(|error| format!("its names: {error}"))?;
        let names: Vec<_> = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default().to_vec();
        let text = match names.as_slice() {
            [GeneralName::DNSName(name)] => Some(*name),
            _ => None,
        };
        let node: Option<NodeName> = text.and_then(|name| name.parse().ok());
        let authority = parsed.is_ca();
        let cluster = match authority {
            true => text.and_then(cluster_of),
            false => node.map(|name| name.cluster),
        };
        Ok(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            node: node.filter(|_| !authority),
            cluster,
            authority,
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
            fingerprint: sha256(der),
        })
    }

    /// Reads all certificates of a PEM file; there is at least one.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Vec<Self>, Error> {
        let ders = pem(path)?;
        let content = |what| Error::Content { path: path.to_owned(), what };
        ders.iter().map(|der| Self::from_der(der).map_err(content)).collect()
    }

    /// Whether a time is within its validity.
    pub fn is_valid_at(&self, time: SystemTime) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }

    /// The fingerprint as it is usually written: `ab:cd:…`.
    pub fn fingerprint_text(&self) -> String {
        let bytes = self.fingerprint.iter().map(|byte| format!("{byte:02x}"));
        bytes.collect::<Vec<_>>().join(":")
    }
}

/// The certificates of a PEM file in DER form; there is at least one.
pub(crate) fn pem(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    use rustls::pki_types::pem::Error as Pem;
    let wrong = |error| match error {
        Pem::Io(source) => Error::File { path: path.to_owned(), source },
        other => Error::Content { path: path.to_owned(), what: format!("not PEM: {other}") },
    };
    let ders = CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    if ders.is_empty() {
        let what = "holds no certificate (-----BEGIN CERTIFICATE-----)".to_owned();
        return Err(Error::Content { path: path.to_owned(), what });
    }
    Ok(ders)
}

/// A year in a certificate has four digits; what is before 1970 is taken for 1970, since nothing was valid then.
fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The hash function of the cipher suite that TLS 1.3 obliges every implementation to have (RFC 8446, section 9.1).
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let mut digest = [0; 32];
    if let Some(suite) = suite.tls13() {
        let output = suite.common.hash_provider.hash(bytes);
        digest.copy_from_slice(output.as_ref());
    }
    digest
}
