//! The host's certificate: read at the start, and again when its files change or SIGHUP asks.
//!
//! **Invariant:** a certificate is taken only whole: readable, with a key that fits. One that is not
//! changes nothing but the log, and connections that are open keep what they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;

use crate::storage::{OsFileSystem, read_file};
use crate::types::Digest;

/// Why a certificate was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read [http] {key} {path}: {source}")]
    Read {
        /// `tls_cert` or `tls_key`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("[http] {key} {path} holds no {what} in PEM: {reason}")]
    Pem {
        /// `tls_cert` or `tls_key`.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// A certificate or a private key.
        what: &'static str,
        /// Why not.
        reason: String,
    },
    /// The two do not belong together, or are of a kind that is not known.
    #[error("certificate {cert} and key {key} cannot be used: {reason}")]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The certificate that new connections get.
pub struct Tls {
    cert: PathBuf,
    key: PathBuf,
    current: RwLock<Arc<ServerConfig>>,
    /// Digests of the files as they were when last looked at.
    seen: Mutex<[Option<Digest>; 2]>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(cert: &Path, key: &Path) -> Result<Arc<Self>, Error> {
        let current = RwLock::new(read(cert, key)?);
        let (cert, key) = (cert.to_owned(), key.to_owned());
        let tls = Self { cert, key, current, seen: Mutex::default() };
        *tls.seen.lock() = tls.digests();
        Ok(Arc::new(tls))
    }

    /// What secures a new connection.
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.read()).into()
    }

    fn digests(&self) -> [Option<Digest>; 2] {
        [&self.cert, &self.key]
            .map(|path| read_file(&OsFileSystem, path).ok().map(|bytes| Digest::of(&bytes)))
    }

    /// Takes what is in the files now, if it has changed or `always`.
    fn look(&self, always: bool) {
        let digests = self.digests();
        let changed = std::mem::replace(&mut *self.seen.lock(), digests) != digests;
        if !changed && !always {
            return;
        }
        let cert = self.cert.display();
        match read(&self.cert, &self.key) {
            Ok(config) => {
                *self.current.write() = config;
                tracing::info!(%cert, "the certificate was read again: new connections get it");
            }
            Err(error) => tracing::error!(
                "the new certificate is not taken, the old one stays in use: {error}; mend the files, they are looked at again"
            ),
        }
    }

    /// Looks `every` so often, and at once on SIGHUP, for as long as the process lives.
    pub async fn keep_current(self: Arc<Self>, every: Duration) {
        let mut hangup = match signal(SignalKind::hangup()) {
            Ok(hangup) => hangup,
            Err(error) => {
                tracing::warn!(%error, "SIGHUP does not read the certificate again");
                return;
            }
        };
        loop {
            let always = tokio::select! {
                () = tokio::time::sleep(every) => false,
                _ = hangup.recv() => true,
            };
            let tls = Arc::clone(&self);
            // A panic there would be a fault of the reader; the next look tries again.
            let _ = tokio::task::spawn_blocking(move || tls.look(always)).await;
        }
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, Error> {
    let file = |name, path: &Path| {
        read_file(&OsFileSystem, path).map_err(|source| Error::Read {
            key: name,
            path: path.to_owned(),
            source,
        })
    };
    let pem = |key, path: &Path, what, reason: String| Error::Pem {
        key,
        path: path.to_owned(),
        what,
        reason,
    };
    let (chain, secret) = (file("tls_cert", cert)?, file("tls_key", key)?);
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&chain)
        .collect::<Result<_, _>>()
        .map_err(|e| pem("tls_cert", cert, "certificate", e.to_string()))?;
    if chain.is_empty() {
        return Err(pem("tls_cert", cert, "certificate", "there is no such section".to_owned()));
    }
    let secret = PrivateKeyDer::from_pem_slice(&secret)
        .map_err(|e| pem("tls_key", key, "private key", e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, secret));
    let mut config = config.map_err(|error| Error::Unusable {
        cert: cert.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
