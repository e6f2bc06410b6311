//! Certificates: making one from a shared secret, and reading a node's name, and the day it ends, out of one.
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

/// The certificate of the CA that `secret` stands for: the same on every node.
pub(super) fn ca_of(secret: &[u8]) -> Result<CertificateDer<'static>, rcgen::Error> {
    Ok(ca_params().self_signed(&derive_ca_key(secret)?)?.der().clone())
}

/// A fresh certificate for `node`, signed by the CA that `secret` stands for, as a chain of one; and its key.
pub(super) fn signed_by(
    secret: &[u8],
    node: &NodeId,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), rcgen::Error> {
    let issuer = Issuer::new(ca_params(), derive_ca_key(secret)?);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let leaf = leaf_params(node)?.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((vec![leaf.der().clone()], key))
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
const DER_VERSION: u8 = 0xa0;
const DER_INTEGER: u8 = 0x02;
const DER_UTC_TIME: u8 = 0x17;
const DER_GENERALIZED_TIME: u8 = 0x18;
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

/// When a certificate ends, in Unix seconds: `notAfter` of RFC 5280, section 4.1. None where it cannot be read.
pub(super) fn expiry_of(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (signed, _) = der(certificate, DER_SEQUENCE)?;
    let (fields, _) = der(signed, DER_SEQUENCE)?;
    let (_, fields) = der(fields, DER_VERSION)?;
    let (_serial, fields) = der(fields, DER_INTEGER)?;
    let (_algorithm, fields) = der(fields, DER_SEQUENCE)?;
    let (_issuer, fields) = der(fields, DER_SEQUENCE)?;
    let (validity, _) = der(fields, DER_SEQUENCE)?;
    let (_not_before, not_after) = time(validity)?;
    time(not_after).map(|(seconds, _)| seconds)
}

/// Splits a point in time off `bytes`: Unix seconds, and what follows. RFC 5280 wants seconds, no fractions, and UTC.
fn time(bytes: &[u8]) -> Option<(i64, &[u8])> {
    let (text, rest) = der(bytes, DER_UTC_TIME).or_else(|| der(bytes, DER_GENERALIZED_TIME))?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(text.len().checked_sub(10)?)?;
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i64>().ok()).flatten();
    let year = match (year.len(), number(year)?) {
        (2, year @ 50..) => 1900 + year,
        (2, year) => 2000 + year,
        (4, year) => year,
        _ => return None,
    };
    let part = |n: usize| number(text.get(2 * n..2 * n + 2)?);
    let (month, day) = (part(0)?, part(1)?);
    let seconds = (part(2)? * 60 + part(3)?) * 60 + part(4)?;
    Some((days_since_1970(year, month, day) * 86_400 + seconds, rest))
}

/// Of the Gregorian calendar, in years that begin with March, so that a leap day is a year's last; 146,097 days make 400
/// years (H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `days_from_civil`).
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
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
        let (chain, _) = signed_by(b"a secret of sixteen bytes", &longest).unwrap();
        assert_eq!(name_of(&chain[0]), Ok(longest));
    }

    #[test]
    fn one_secret_makes_one_ca_and_another_secret_another() {
        let ca = |secret: &[u8]| ca_of(secret).unwrap();
        assert_eq!(ca(b"first secret 1234"), ca(b"first secret 1234"));
        assert_ne!(ca(b"first secret 1234"), ca(b"other secret 1234"));
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

    #[test]
    fn the_end_of_a_certificate_is_read_in_either_form() {
        let expiry = |year, month, day| {
            let mut params = CertificateParams::default();
            params.not_after = date_time_ymd(year, month, day);
            let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            expiry_of(params.self_signed(&key).unwrap().der())
        };
        for (year, month, day) in
            [(1970, 1, 1), (1999, 12, 31), (2000, 2, 29), (2026, 11, 24), (2049, 12, 31), (2050, 1, 1), (4096, 1, 1)]
        {
            let wanted = date_time_ymd(year, month, day).unix_timestamp();
            assert_eq!(expiry(year, month, day), Some(wanted), "{year}-{month}-{day}");
        }
        let noon = [b"\x17\x0d261124210750Z".as_slice(), b"rest"].concat();
        assert_eq!(time(&noon), Some((1_795_554_470, &b"rest"[..])));
        for bad in [&b"\x17\x0d261124210750+"[..], b"\x17\x0b2611242107Z", b"\x17\x0d26112421075xZ", b"\x17\x01Z", b""]
        {
            assert_eq!(time(bad), None, "{bad:?}");
        }
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
            let _ = time(&bytes);
            let _ = expiry_of(&CertificateDer::from(bytes.as_slice()));
            let _ = name_of(&CertificateDer::from(bytes));
        }
    }
}
