//! Who a peer is: mutual TLS 1.3 under the cluster's own CA. Knows rustls, not QUIC.
//!
//! A certificate of this CA is what lets a node in; its name is then whatever the certificate says, so neither side
//! checks a host name. Sessions are never resumed: each connection shows its certificate again, and one that a new CA
//! no longer covers stops working with the next connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::certificate::{self, Chain, NoName, SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use crate::types::NodeId;

/// The protocol that both ends must speak.
pub const ALPN: &[u8] = b"outrigger/1";
/// The largest PEM file, in bytes.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Where a node's certificate and the CA come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A file with a secret that all nodes share; each derives the CA from it and signs its own certificate.
    KeyFile(PathBuf),
    /// Certificates made elsewhere; the node's must allow both server and client use, and name the node as CN or as
    /// its only DNS name. Read again when they change.
    Pem {
        /// The CA, or several of them while one replaces another.
        ca: PathBuf,
        /// This node's certificate, then any between it and the CA.
        cert: PathBuf,
        /// Its private key: PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// What it is for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No secret has this size.
    #[error("the {what} {} has more than {max} bytes: is it the right file?", path.display())]
    TooLarge {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// A secret that could be guessed.
    #[error(
        "the key file {} holds {bytes} bytes, too few for a secret: want {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, as \
         from 'openssl rand -hex 32'", path.display()
    )]
    SecretTooShort {
        /// Where it is.
        path: PathBuf,
        /// Its size without white space around it.
        bytes: usize,
    },
    /// A PEM file without what it should hold.
    #[error("the {what} {} holds nothing usable in PEM: {reason}", path.display())]
    Pem {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The own certificate is another node's.
    #[error("the certificate is for node {found}, but this is {node}: [node] name and the certificate must agree")]
    OtherName {
        /// This node.
        node: NodeId,
        /// Whom it is for.
        found: NodeId,
    },
    /// The own certificate is nobody's.
    #[error("cannot use the node's certificate: {0}")]
    NoName(#[from] NoName),
    /// Peers would refuse the own certificate.
    #[error("the node's certificate would be refused by its peers, as it does not fit the CA: {0}")]
    Unfit(rustls::Error),
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// TLS does not take what it was given.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// What an identity's files held at one moment; equal contents make equal configurations.
#[derive(PartialEq, Eq)]
pub(super) enum Sources {
    Secret(Vec<u8>),
    Pem { ca: PemFile, cert: PemFile, key: PemFile },
}

#[derive(PartialEq, Eq)]
pub(super) struct PemFile {
    path: PathBuf,
    held: Vec<u8>,
}

/// Both ends' TLS configuration for one identity.
pub(super) struct Configs {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
}

impl Identity {
    /// Reads the files. Blocking, but they are small.
    pub(super) fn read(&self) -> Result<Sources, Error> {
        match self {
            Self::KeyFile(path) => {
                let held = read("key file", path, SECRET_BYTES_MAX)?;
                let secret = held.trim_ascii();
                if secret.len() < SECRET_BYTES_MIN {
                    return Err(Error::SecretTooShort { path: path.clone(), bytes: secret.len() });
                }
                Ok(Sources::Secret(secret.to_vec()))
            }
            Self::Pem { ca, cert, key } => Ok(Sources::Pem {
                ca: PemFile::read("CA file", ca)?,
                cert: PemFile::read("certificate file", cert)?,
                key: PemFile::read("private key file", key)?,
            }),
        }
    }
}

impl PemFile {
    fn read(what: &'static str, path: &Path) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), held: read(what, path, PEM_BYTES_MAX)? })
    }

    fn certificates(&self, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.held).collect();
        let found = found.map_err(|error| self.bad(what, error.to_string()))?;
        if found.is_empty() {
            return Err(self.bad(what, "no CERTIFICATE section".to_owned()));
        }
        Ok(found)
    }

    fn private_key(&self, what: &'static str) -> Result<PrivateKeyDer<'static>, Error> {
        PrivateKeyDer::from_pem_slice(&self.held).map_err(|error| self.bad(what, error.to_string()))
    }

    fn bad(&self, what: &'static str, reason: String) -> Error {
        Error::Pem { what, path: self.path.clone(), reason }
    }
}

impl Sources {
    /// Makes configurations for `node`. Checks what its peers will check, so that a wrong file is found here.
    pub(super) fn configure(&self, node: &NodeId) -> Result<Configs, Error> {
        let mut roots = RootCertStore::empty();
        let (chain, key) = match self {
            Self::Pem { ca, cert, key } => {
                for root in ca.certificates("CA file")? {
                    roots.add(root)?;
                }
                (cert.certificates("certificate file")?, key.private_key("private key file")?)
            }
            Self::Secret(secret) => {
                let Chain { ca, chain, key } = certificate::from_secret(secret, node)?;
                roots.add(ca)?;
                (chain, key)
            }
        };
        configure(roots, chain, key, node)
    }
}

fn read(what: &'static str, path: &Path, max: usize) -> Result<Vec<u8>, Error> {
    use io::Read as _;
    let mut held = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut held)).map_err(|source| Error::Read {
        what,
        path: path.to_owned(),
        source,
    })?;
    if held.len() > max {
        return Err(Error::TooLarge { what, path: path.to_owned(), max });
    }
    Ok(held)
}

fn configure(
    roots: RootCertStore,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    node: &NodeId,
) -> Result<Configs, Error> {
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(roots);
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = Arc::new(NodeVerifier { roots, clients, algorithms: provider.signature_verification_algorithms });
    check_own(&verifier, &chain, node)?;

    Ok(Configs {
        server: Arc::new(server(&provider, &verifier, chain.clone(), key.clone_key())?),
        client: Arc::new(client(&provider, verifier, chain, key)?),
    })
}

fn check_own(verifier: &NodeVerifier, chain: &[CertificateDer<'static>], node: &NodeId) -> Result<(), Error> {
    let Some((leaf, between)) = chain.split_first() else { return Err(Error::NoName(NoName::Nameless)) };
    let found = certificate::name_of(leaf)?;
    if found != *node {
        return Err(Error::OtherName { node: node.clone(), found });
    }
    let now = UnixTime::now();
    verifier.verify_server(leaf, between, now).map_err(Error::Unfit)?;
    verifier.clients.verify_client_cert(leaf, between, now).map_err(Error::Unfit)?;
    Ok(())
}

fn server(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<NodeVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier: Arc<NodeVerifier> = Arc::clone(verifier);
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<NodeVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(config)
}

/// Checks chain, validity, usage and signatures as webpki does; in place of a host name, that there is a node's name.
#[derive(Debug)]
struct NodeVerifier {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl NodeVerifier {
    fn verify_server(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, between, now, self.algorithms.all)?;
        names_a_node(leaf)
    }
}

fn names_a_node(leaf: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    certificate::name_of(leaf).map(drop).map_err(|error| CertificateError::Other(OtherError(Arc::new(error))).into())
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_server(leaf, between, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for NodeVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.clients.verify_client_cert(leaf, between, now)?;
        names_a_node(leaf).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}
