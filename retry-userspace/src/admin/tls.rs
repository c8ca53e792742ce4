//! TLS of the management API (`-admin-tls-cert`): versions 1.2 and 1.3, and client certificates where an authority is named.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::settings::AdminTls;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or has not what it is to have.
    #[error("-{setting} {path}: {why}")]
    File {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The key is of no use with the certificate.
    #[error("-admin-tls-cert, -admin-tls-key: {0}")]
    Pair(rustls::Error),
    /// The authorities are of no use.
    #[error("-admin-tls-client-ca: {0}")]
    Authorities(String),
}

/// What new connections are offered. Clones share it.
#[derive(Clone)]
pub(crate) struct Tls(Arc<ArcSwap<ServerConfig>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(***)")
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub(crate) fn open(files: &AdminTls) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(read(files)?))))
    }

    /// New connections are offered this. Those that are open go on.
    pub(crate) fn offer(&self, offered: ServerConfig) {
        self.0.store(Arc::new(offered));
    }

    /// The client's handshake.
    ///
    /// # Errors
    /// What it sends is no TLS, or it does not agree with what is offered.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0.load_full()).accept(stream).await
    }
}

/// What these files offer.
///
/// # Errors
/// [`TlsError`].
pub(crate) fn read(files: &AdminTls) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates("admin-tls-cert", &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| refused("admin-tls-key", &files.key, &error))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(TlsError::Pair)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut authorities = RootCertStore::empty();
            for certificate in certificates("admin-tls-client-ca", file)? {
                authorities.add(certificate).map_err(|error| refused("admin-tls-client-ca", file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| TlsError::Authorities(error.to_string()))?)
        }
    };
    let mut offered = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
    offered.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(offered)
}

fn certificates(setting: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let all = all.map_err(|error| refused(setting, file, &error))?;
    if all.is_empty() { Err(refused(setting, file, &"it has no certificate (PEM)")) } else { Ok(all) }
}

fn refused(setting: &'static str, file: &Path, why: &dyn fmt::Display) -> TlsError {
    TlsError::File { setting, path: file.display().to_string(), why: why.to_string() }
}
