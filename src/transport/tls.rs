//! Who a peer is: mutual TLS 1.3 under the cluster's own CA. Knows rustls, not QUIC.
//!
//! A certificate of this CA is what lets a node in; its name is then whatever the certificate says, so neither side
//! checks a host name. Sessions are never resumed: each connection shows its certificate again, and one that a new CA
//! no longer covers stops working with the next connection.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::certificate::{self, NoName};
pub use super::identity::{Error, Identity, KEYS_MAX, Line, PEM_BYTES_MAX};
use crate::types::NodeId;

/// The protocol that both ends must speak.
pub const ALPN: &[u8] = b"outrigger/1";

/// Both ends' TLS configuration for one identity.
pub(super) struct Configs {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    /// When the first of the own certificates ends, in Unix seconds.
    pub(super) expires: i64,
}

/// For a node that shows `chain` and takes what `roots` have signed.
pub(super) fn configure(
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
    let expires = chain.iter().filter_map(certificate::expiry_of).min().unwrap_or(i64::MAX);

    Ok(Configs {
        expires,
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
