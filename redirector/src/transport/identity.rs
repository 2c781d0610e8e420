//! Who a node is, and whom it believes.

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use crate::config::{Cluster, IdentityFiles};
use crate::pki::{self, Certificate, NodeName};

/// A certificate that is good for less than this should be renewed.
const RENEW: Duration = Duration::from_secs(30 * 24 * 3600);

/// The cluster's authorities, this node's certificate and its key.
#[derive(Clone)]
pub struct Identity {
    pub(super) name: NodeName,
    pub(super) roots: Arc<RootCertStore>,
    pub(super) key: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// One of the files.
    #[error(transparent)]
    File(#[from] pki::Error),
    /// The certificate does not name one node of one cluster.
    #[error("{}: names no node; `redirector pki issue` makes certificates that do", .0.display())]
    Nameless(PathBuf),
    /// It is for another cluster.
    #[error("{}: is for cluster {theirs}, this is cluster {ours}", .path.display())]
    Cluster {
        /// The certificate.
        path: PathBuf,
        /// Whose it is.
        theirs: u32,
        /// The configuration's.
        ours: u32,
    },
    /// Key and certificate do not belong together.
    #[error("{}: is not the key of {} ({source})", .key.display(), .certificate.display())]
    Key {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// What does not fit.
        source: rustls::Error,
    },
    /// The authorities did not sign it.
    #[error("{}: not issued by an authority of {} ({source})", .certificate.display(), .ca.display())]
    Foreign {
        /// The certificate.
        certificate: PathBuf,
        /// The authorities' file.
        ca: PathBuf,
        /// What does not fit.
        source: rustls::Error,
    },
    /// The authorities' file holds something that cannot be one.
    #[error("{}: no authority can be taken from it: {what}", .path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl Identity {
    /// Reads the files that a configuration names; none if it names none.
    ///
    /// A certificate that is not yet or no longer valid is loaded all the same, since clocks may be wrong; peers will
    /// refuse it, so look at [`Identity::validity`].
    ///
    /// # Errors
    /// What keeps the files from being an identity in this cluster.
    pub fn load(cluster: &Cluster) -> Result<Option<Self>, IdentityError> {
        let Some(files) = &cluster.identity else { return Ok(None) };
        let identity = Self::read(files)?;
        if identity.name.cluster != cluster.id {
            let (path, theirs) = (files.certificate.clone(), identity.name.cluster);
            return Err(IdentityError::Cluster { path, theirs, ours: cluster.id });
        }
        Ok(Some(identity))
    }

    /// Reads an identity, of whatever cluster.
    ///
    /// # Errors
    /// What keeps the files from being one.
    pub fn read(files: &IdentityFiles) -> Result<Self, IdentityError> {
        let IdentityFiles { ca, certificate, private_key } = files;
        let roots = authorities(ca)?;
        let chain = pki::pem(certificate)?;
        let content = |what| pki::Error::Content { path: certificate.clone(), what };
        let leaf = Certificate::from_der(&chain[0]).map_err(content)?;
        let name = leaf.node.ok_or_else(|| IdentityError::Nameless(certificate.clone()))?;
        let key = CertifiedKey::from_der(chain, key_of(private_key)?, &super::tls::provider()).map_err(|source| {
            IdentityError::Key { key: private_key.clone(), certificate: certificate.clone(), source }
        })?;
        let foreign = |source| IdentityError::Foreign { certificate: certificate.clone(), ca: ca.clone(), source };
        issued_by(&roots, &key.cert, name, &leaf).map_err(foreign)?;
        let (not_before, not_after) = (leaf.not_before, leaf.not_after);
        Ok(Self { name, roots, key: Arc::new(key), not_before, not_after })
    }

    /// The node and the cluster that the certificate names.
    pub fn name(&self) -> NodeName {
        self.name
    }

    /// From when to when the certificate is good.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }

    /// Logs what of the validity will keep peers from accepting it.
    pub(super) fn tell_of_validity(&self) {
        let now = SystemTime::now();
        let until = humantime::format_rfc3339_seconds(self.not_after);
        if !(self.not_before..=self.not_after).contains(&now) {
            let from = humantime::format_rfc3339_seconds(self.not_before);
            tracing::error!(%from, %until, "peers refuse this node's certificate by now: check the clock, or renew it");
        } else if self.not_after < now + RENEW {
            tracing::warn!(%until, "this node's certificate runs out soon: `redirector pki issue` renews it");
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.name)
    }
}

fn authorities(path: &Path) -> Result<Arc<RootCertStore>, IdentityError> {
    let wrong = |what| IdentityError::Authority { path: path.to_owned(), what };
    let mut roots = RootCertStore::empty();
    for (place, der) in pki::pem(path)?.into_iter().enumerate() {
        let which = |error| wrong(format!("certificate {}: {error}", place + 1));
        let said = Certificate::from_der(&der).map_err(which)?;
        if !said.authority {
            return Err(which(format!("{} may not sign others", said.subject)));
        }
        roots.add(der).map_err(|error| which(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

fn key_of(path: &Path) -> Result<PrivateKeyDer<'static>, pki::Error> {
    use rustls::pki_types::pem::Error as Pem;
    if path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        tracing::warn!(file = %path.display(), "others than its owner can read this node's private key: chmod 600");
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        Pem::Io(source) => pki::Error::File { path: path.to_owned(), source },
        Pem::NoItemsFound => {
            pki::Error::Content { path: path.to_owned(), what: "holds no private key in PEM".to_owned() }
        }
        other => pki::Error::Content { path: path.to_owned(), what: format!("not PEM: {other}") },
    })
}

/// Judges the signatures alone: at the certificate's last second, whatever the clock says.
fn issued_by(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    name: NodeName,
    leaf: &Certificate,
) -> Result<(), rustls::Error> {
    let other = |error: &dyn fmt::Display| rustls::Error::General(error.to_string());
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), super::tls::provider())
        .build()
        .map_err(|error| other(&error))?;
    let server = ServerName::try_from(name.to_string()).map_err(|error| other(&error))?;
    let at = leaf.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    verifier.verify_server_cert(&chain[0], &chain[1..], &server, &[], UnixTime::since_unix_epoch(at)).map(drop)
}
