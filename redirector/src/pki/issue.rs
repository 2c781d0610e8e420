//! Making the authority and the nodes' certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints,
};

use super::certificate::Certificate;
use super::{Error, NodeName, files, name};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long an authority is good for.
const AUTHORITY_DAYS: u32 = 3652;

/// Certificates are good from a day before they are made, for nodes whose clocks are behind.
pub(crate) const CLOCKS_APART: Duration = DAY;

/// A node's certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

/// Makes the authority of a cluster: `ca.crt` and `ca.key` in a directory that is there. With `force`, one that is
/// there already is replaced.
///
/// # Errors
/// [`Error`]; nothing is changed unless a file could not be written.
pub fn init(directory: &Path, cluster: u32, force: bool) -> Result<Issued, Error> {
    files::directory(directory)?;
    let made = Issued { certificate: directory.join("ca.crt"), key: directory.join("ca.key") };
    for path in [&made.certificate, &made.key] {
        if !force && path.symlink_metadata().is_ok() {
            return Err(Error::Exists(path.clone()));
        }
    }
    let domain = name::domain(cluster);
    let mut wanted = params(&domain, &format!("Redirector cluster {cluster} CA"), AUTHORITY_DAYS)?;
    wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wanted.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain)],
        excluded_subtrees: Vec::new(),
    });
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = wanted.self_signed(&key)?;
    files::put(&made.key, &key.serialize_pem(), files::SECRET)?;
    files::put(&made.certificate, &certificate.pem(), files::PUBLIC)?;
    Ok(made)
}

/// Issues a certificate for a node, with a new key: `node-ID.crt` and `node-ID.key` in `out`. Those that are there
/// already are replaced: that is how a certificate is renewed.
///
/// # Errors
/// [`Error`]; nothing is changed unless a file could not be written.
pub fn issue(directory: &Path, node: u16, out: &Path, days: u32) -> Result<Issued, Error> {
    let node = u8::try_from(node).ok().filter(|id| (1..=254).contains(id)).ok_or(Error::NodeId(node))?;
    files::directory(directory)?;
    files::directory(out)?;
    let (authority, issuer) = authority(directory)?;
    let Some(cluster) = authority.cluster else {
        let what = "is not the certificate of a cluster's authority".to_owned();
        return Err(Error::Content { path: directory.join("ca.crt"), what });
    };
    let left = authority.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    let most = (left.as_secs() / DAY.as_secs()) as u32;
    if !(1..=most).contains(&days) {
        return Err(Error::Days { asked: days, most });
    }
    let name = NodeName { node, cluster };
    let mut wanted = params(&name.to_string(), &format!("Redirector cluster {cluster} node {node}"), days)?;
    wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    wanted.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = wanted.signed_by(&key, &issuer)?;
    let made = Issued { certificate: out.join(format!("node-{node}.crt")), key: out.join(format!("node-{node}.key")) };
    files::put(&made.key, &key.serialize_pem(), files::SECRET)?;
    files::put(&made.certificate, &certificate.pem(), files::PUBLIC)?;
    Ok(made)
}

/// What both kinds of certificate have in common.
fn params(dns: &str, common_name: &str, days: u32) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new([dns.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = x509_parser::time::ASN1Time::now().to_datetime();
    params.not_before = now - CLOCKS_APART;
    params.not_after = now + DAY * days;
    Ok(params)
}

/// Reads the authority of a directory.
fn authority(directory: &Path) -> Result<(Certificate, Issuer<'static, KeyPair>), Error> {
    let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
    for path in [&certificate, &key] {
        if !path.exists() {
            return Err(Error::NoAuthority(path.clone()));
        }
    }
    let metadata = fs::metadata(&key).map_err(|source| Error::File { path: key.clone(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::Exposed { path: key, mode });
    }
    let said = Certificate::read(&certificate)?;
    let der = super::certificate::pem(&certificate)?;
    let unusable = |path: &Path, error: rcgen::Error| Error::Content { path: path.to_owned(), what: error.to_string() };
    let pair = KeyPair::from_pem(&files::get(&key)?).map_err(|error| unusable(&key, error))?;
    // While one authority follows another, the file of a node holds several; here the first is the one that signs.
    let (said, der) = (said[0].clone(), &der[0]);
    if !signs(der, &pair) {
        let what = format!("is not the key of {}", certificate.display());
        return Err(Error::Content { path: key, what });
    }
    let issuer = Issuer::from_ca_cert_der(der, pair).map_err(|error| unusable(&certificate, error))?;
    Ok((said, issuer))
}

/// Whether a certificate is for a key.
fn signs(certificate: &[u8], key: &KeyPair) -> bool {
    use x509_parser::prelude::{FromDer as _, X509Certificate};
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, parsed)| *parsed.public_key().subject_public_key.data == *key.public_key_raw())
}
