//! Certificates: making one from a shared secret, and reading a node's name out of one.
//!
//! Every node that knows the secret derives the same CA key and signs a certificate for itself, with its name in it.
//! A node's name may hold what DNS names may not (`_`, `@`, upper case), so the certificate carries it in base32:
//!
//! ```text
//!   Pod_1@x  ──►  SAN  kbxwixzrib4a.node.outrigger      CN  Pod_1@x (for people)
//! ```

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SerialNumber, date_time_ymd,
};
use ring::hkdf;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::types::NodeId;

/// The shortest shared secret, in bytes, white space around it not counted.
pub(super) const SECRET_BYTES_MIN: usize = 16;
/// The largest key file, in bytes.
pub(super) const SECRET_BYTES_MAX: usize = 4 * 1024;

const SUFFIX: &str = ".node.outrigger";
const LABEL_BYTES_MAX: usize = 63;
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// PKCS#8 v1 (RFC 8410) of an Ed25519 private key, up to the 32 bytes of the key itself.
const ED25519_PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// A certificate chain, leaf first, the leaf's key, and the CA that signed it.
pub(super) struct Chain {
    pub(super) ca: CertificateDer<'static>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Derives the cluster's CA from `secret` and signs a fresh certificate for `node` with it.
pub(super) fn from_secret(secret: &[u8], node: &NodeId) -> Result<Chain, rcgen::Error> {
    let ca_key = derive_ca_key(secret)?;
    let ca_params = ca_params();
    let ca = ca_params.self_signed(&ca_key)?.der().clone();
    let issuer = Issuer::new(ca_params, ca_key);

    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let leaf = leaf_params(node)?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Chain { ca, chain: vec![leaf.der().clone()], key })
}

fn derive_ca_key(secret: &[u8]) -> Result<KeyPair, rcgen::Error> {
    let failed = |_| rcgen::Error::RingUnspecified;
    let mut seed = [0; 32];
    hkdf::Salt::new(hkdf::HKDF_SHA256, b"outrigger cluster ca v1")
        .extract(secret)
        .expand(&[b"ed25519 signing key"], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut seed))
        .map_err(failed)?;
    let pkcs8 = [ED25519_PKCS8_HEAD.as_slice(), &seed].concat();
    KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)
}

/// The same on every node, whatever the time: two nodes must mean the same CA.
fn ca_params() -> CertificateParams {
    let mut params = timeless();
    params.distinguished_name = named("outrigger cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.serial_number = Some(SerialNumber::from_slice(&[1]));
    params
}

fn leaf_params(node: &NodeId) -> Result<CertificateParams, rcgen::Error> {
    let mut params = timeless();
    params.distinguished_name = named(node.as_str());
    params.subject_alt_names = vec![SanType::DnsName(dns_name(node).try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Valid whatever a node's clock says: it is the secret that lets a node in, and a clock that jumps must not lock it
/// out.
fn timeless() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// The DNS name that stands for a node's name in its certificate: base32 in labels, as 128 bytes would not fit in hex.
fn dns_name(node: &NodeId) -> String {
    let digits = base32(node.as_str().as_bytes());
    let mut name = String::with_capacity(digits.len() + 8 + SUFFIX.len());
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && n % LABEL_BYTES_MAX == 0 {
            name.push('.');
        }
        name.push(digit);
    }
    name + SUFFIX
}

fn base32(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut held) = (0_u32, 0_u32);
    let digit = |five: u32| BASE32.get((five & 31) as usize).map_or('a', |digit| char::from(*digit));
    for byte in bytes {
        bits = (bits << 8) | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(digit(bits >> held));
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        text.push(digit(bits << (5 - held)));
    }
    text
}

fn from_base32(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for digit in text.bytes().filter(|byte| *byte != b'.') {
        let digit = digit.to_ascii_lowercase();
        let five = BASE32.iter().position(|known| *known == digit)?;
        bits = (bits << 5) | u32::try_from(five).ok()?;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    Some(bytes)
}

/// Why no node's name could be read from a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoName {
    /// Not X.509, or damaged.
    #[error("it is not an X.509 version 3 certificate: {0}")]
    Unreadable(String),
    /// Nothing in it can be a node's name.
    #[error("it names no node: want the node's name as common name (CN), or as its only DNS name")]
    Nameless,
    /// Several names of equal right.
    #[error("it names several nodes: want one")]
    Ambiguous,
}

/// The node that a certificate is for. A name in this module's own encoding wins; certificates made by other tools
/// carry the name as CN, or else as their only DNS name. Says nothing about who signed it.
pub(super) fn name_of(certificate: &CertificateDer<'_>) -> Result<NodeId, NoName> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| NoName::Unreadable(error.to_string()))?;
    let dns_names: Vec<&str> = parsed.valid_dns_names().collect();
    let mut encoded = dns_names.iter().filter_map(|name| name.strip_suffix(SUFFIX));
    if let Some(name) = encoded.next() {
        if encoded.next().is_some() {
            return Err(NoName::Ambiguous);
        }
        let bytes = from_base32(name).ok_or(NoName::Nameless)?;
        return std::str::from_utf8(&bytes).ok().and_then(|name| NodeId::parse(name).ok()).ok_or(NoName::Nameless);
    }
    if let Some(name) = common_name(parsed.subject()) {
        return NodeId::parse(name).map_err(|_| NoName::Nameless);
    }
    match dns_names.as_slice() {
        [] => Err(NoName::Nameless),
        [name] => NodeId::parse(name).map_err(|_| NoName::Nameless),
        _ => Err(NoName::Ambiguous),
    }
}

const DER_SEQUENCE: u8 = 0x30;
const DER_SET: u8 = 0x31;
const DER_OID: u8 = 0x06;
const DER_UTF8: u8 = 0x0c;
const DER_PRINTABLE: u8 = 0x13;
const OID_COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The last CN in `subject`: the content of an RFC 5280 `Name`, that is sets of (type, value) pairs.
fn common_name(mut subject: &[u8]) -> Option<&str> {
    let mut found = None;
    while !subject.is_empty() {
        let (mut set, rest) = der(subject, DER_SET)?;
        subject = rest;
        while !set.is_empty() {
            let (pair, rest) = der(set, DER_SEQUENCE)?;
            set = rest;
            let (oid, value) = der(pair, DER_OID)?;
            if oid == OID_COMMON_NAME {
                let (text, _) = der(value, DER_UTF8).or_else(|| der(value, DER_PRINTABLE))?;
                found = Some(std::str::from_utf8(text).ok()?);
            }
        }
    }
    found
}

/// Splits the DER element with `tag` off `bytes`: its content, and what follows. A name has no element of 64 KiB.
fn der(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, bytes) = bytes.split_first()?;
    let (length, bytes) = bytes.split_first()?;
    let (length, bytes) = match (*length, bytes) {
        (short @ ..=0x7f, rest) => (usize::from(short), rest),
        (0x81, [length, rest @ ..]) => (usize::from(*length), rest),
        (0x82, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
        _ => return None,
    };
    (*found == tag).then(|| bytes.split_at_checked(length)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::parse(name).unwrap()
    }

    #[test]
    fn the_longest_name_fits_a_dns_name() {
        let longest = node(&"Z".repeat(crate::types::NAME_BYTES_MAX));
        let name = dns_name(&longest);
        assert!(name.len() <= 253, "{} bytes", name.len());
        assert!(name.split('.').all(|label| (1..=63).contains(&label.len())), "{name}");
        let chain = from_secret(b"a secret of sixteen bytes", &longest).unwrap();
        assert_eq!(name_of(&chain.chain[0]), Ok(longest));
    }

    #[test]
    fn one_secret_makes_one_ca_and_another_secret_another() {
        let ca = |secret: &[u8], name: &str| from_secret(secret, &node(name)).unwrap().ca;
        assert_eq!(ca(b"first secret 1234", "a"), ca(b"first secret 1234", "b"));
        assert_ne!(ca(b"first secret 1234", "a"), ca(b"other secret 1234", "a"));
    }

    fn foreign(common_name: Option<&str>, dns_names: &[&str]) -> Result<NodeId, NoName> {
        let names: Vec<String> = dns_names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "acme");
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        name_of(params.self_signed(&key).unwrap().der())
    }

    #[test]
    fn certificates_of_other_tools_name_a_node_by_cn_or_by_their_only_dns_name() {
        assert_eq!(foreign(Some("app-0"), &["app-0.app.svc", "localhost"]), Ok(node("app-0")));
        assert_eq!(foreign(None, &["app-0"]), Ok(node("app-0")));
        assert_eq!(foreign(None, &["app-0", "app-1"]), Err(NoName::Ambiguous));
        assert_eq!(foreign(None, &[]), Err(NoName::Nameless));
        assert_eq!(foreign(Some("not a name"), &["app-0"]), Err(NoName::Nameless));
        assert_eq!(foreign(Some("b"), &[&dns_name(&node("a"))]), Ok(node("a")));
        assert_eq!(foreign(None, &[&dns_name(&node("a")), &dns_name(&node("b"))]), Err(NoName::Ambiguous));
        assert_eq!(foreign(None, &["!".replace('!', "1.node.outrigger").as_str()]), Err(NoName::Nameless));
    }

    proptest! {
        #[test]
        fn every_name_survives_its_certificate(name in "[A-Za-z0-9][A-Za-z0-9._@-]{0,127}") {
            let encoded = dns_name(&node(&name));
            let digits = encoded.strip_suffix(SUFFIX).unwrap();
            prop_assert_eq!(from_base32(digits).unwrap(), name.as_bytes());
        }

        #[test]
        fn garbage_in_place_of_a_subject_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = common_name(&bytes);
            let _ = name_of(&CertificateDer::from(bytes));
        }
    }
}
