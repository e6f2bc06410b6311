//! What a node proves itself with, as it lies in files: read, checked, and parsed as far as TLS needs it.
//!
//! A key file holds one secret, or several while one replaces another, a line each:
//!
//! ```text
//!   first line     signs this node's own certificate
//!   every line     makes a CA whose certificates are taken from peers
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::certificate::{self, NoName, SECRET_BYTES_MAX, SECRET_BYTES_MIN};
use super::tls::{self, Configs};
use crate::types::NodeId;

/// The largest PEM file, in bytes.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;
/// The most keys in one key file.
pub const KEYS_MAX: usize = 8;

/// Permissions that no file with a secret may grant: anything to everybody, and writing to the group. A group that may
/// read is how Kubernetes hands secrets to a process that is not root.
const FORBIDDEN_MODE: u32 = 0o027;

/// Where a node's certificate and the CA come from. All files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A file with a secret that all nodes share, or up to [`KEYS_MAX`] of them, a line each; each node derives a CA from
    /// every one and signs its own certificate with the first.
    KeyFile(PathBuf),
    /// Certificates made elsewhere; the node's must allow both server and client use, and name the node as CN or as
    /// its only DNS name.
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
    /// A secret that is none.
    #[error(
        "the {what} {} has mode {mode:04o}, by which {} may {}: it is a secret; `chmod 600` it, or 640 where this program \
         reads it as a member of its group",
        path.display(), whom(*mode), does(*mode)
    )]
    Exposed {
        /// What it is for.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
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
        "the key file {} holds {bytes} bytes{line}, too few for a secret: want {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}, as \
         from 'openssl rand -hex 32', on each line", path.display()
    )]
    SecretTooShort {
        /// Where it is.
        path: PathBuf,
        /// Its size without white space around it.
        bytes: usize,
        /// Which one.
        line: Line,
    },
    /// More secrets than a roll needs.
    #[error(
        "the key file {} holds {keys} keys, a line each, want at most {KEYS_MAX}: the first signs, the others are those \
         that peers still use or are about to", path.display()
    )]
    TooManyKeys {
        /// Where they are.
        path: PathBuf,
        /// How many.
        keys: usize,
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

/// The line of a key file that an error is about; none where the file has but one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " on line {line}"))
    }
}

fn whom(mode: u32) -> &'static str {
    if mode & 0o007 == 0 { "its group" } else { "everybody" }
}

fn does(mode: u32) -> &'static str {
    if mode & 0o022 == 0 { "read it" } else { "change it" }
}

/// What an identity's files held at one moment; equal contents make equal configurations.
#[derive(PartialEq, Eq)]
pub(super) enum Sources {
    Secrets(Vec<Vec<u8>>),
    Pem { ca: PemFile, cert: PemFile, key: PemFile },
}

impl fmt::Display for Sources {
    /// Nothing of what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secrets(secrets) => write!(f, "the first key of {} to sign, all of them to trust", secrets.len()),
            Self::Pem { cert, ca, .. } => write!(f, "{} and {}", cert.path.display(), ca.path.display()),
        }
    }
}

#[derive(PartialEq, Eq)]
pub(super) struct PemFile {
    path: PathBuf,
    held: Vec<u8>,
}

impl Identity {
    /// Looks at the permissions of the file with the secret, and not into it. One that is not there is no fault: a
    /// configuration may be checked elsewhere than where it is used.
    pub fn check_permissions(&self) -> Result<(), Error> {
        let (what, path) = match self {
            Self::KeyFile(path) => (KEY_FILE, path),
            Self::Pem { key, .. } => (PRIVATE_KEY_FILE, key),
        };
        std::fs::metadata(path).map_or(Ok(()), |found| refuse_exposed(what, path, &found))
    }

    /// Reads the files. Blocking, but they are small.
    pub(super) fn read(&self) -> Result<Sources, Error> {
        match self {
            Self::KeyFile(path) => {
                let held = read(KEY_FILE, path, SECRET_BYTES_MAX, Kept::Secret)?;
                Ok(Sources::Secrets(secrets(path, &held)?))
            }
            Self::Pem { ca, cert, key } => Ok(Sources::Pem {
                ca: PemFile::read("CA file", ca, Kept::Open)?,
                cert: PemFile::read("certificate file", cert, Kept::Open)?,
                key: PemFile::read(PRIVATE_KEY_FILE, key, Kept::Secret)?,
            }),
        }
    }
}

const KEY_FILE: &str = "key file";
const PRIVATE_KEY_FILE: &str = "private key file";

/// A text has a secret on each line that is not blank. Anything else is one secret, whatever bytes are in it.
fn secrets(path: &Path, held: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let is_text = |text: &&str| !text.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    let lines: Vec<&[u8]> = match std::str::from_utf8(held).ok().filter(is_text) {
        Some(text) => text.lines().map(|line| line.as_bytes().trim_ascii()).collect(),
        None => vec![held.trim_ascii()],
    };
    let numbered = || lines.iter().zip(1..).filter(|(line, _)| !line.is_empty());
    let keys = numbered().count();
    if keys > KEYS_MAX {
        return Err(Error::TooManyKeys { path: path.to_owned(), keys });
    }
    let too_short = |bytes, line| Error::SecretTooShort { path: path.to_owned(), bytes, line: Line(line) };
    match numbered().find(|(secret, _)| secret.len() < SECRET_BYTES_MIN) {
        _ if keys == 0 => Err(too_short(0, None)),
        Some((secret, line)) => Err(too_short(secret.len(), (keys > 1).then_some(line))),
        None => Ok(numbered().map(|(secret, _)| secret.to_vec()).collect()),
    }
}

impl PemFile {
    fn read(what: &'static str, path: &Path, kept: Kept) -> Result<Self, Error> {
        Ok(Self { path: path.to_owned(), held: read(what, path, PEM_BYTES_MAX, kept)? })
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
                (cert.certificates("certificate file")?, key.private_key(PRIVATE_KEY_FILE)?)
            }
            Self::Secrets(secrets) => {
                for secret in secrets {
                    roots.add(certificate::ca_of(secret)?)?;
                }
                // There is a first: reading refuses an empty file.
                let first = secrets.first().map_or(&[][..], Vec::as_slice);
                certificate::signed_by(first, node)?
            }
        };
        tls::configure(roots, chain, key, node)
    }
}

/// Who may see what a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Open,
    Secret,
}

fn read(what: &'static str, path: &Path, max: usize, kept: Kept) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { what, path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if kept == Kept::Secret {
        refuse_exposed(what, path, &file.metadata().map_err(failed)?)?;
    }
    let mut held = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut held).map_err(failed)?;
    if held.len() > max {
        return Err(Error::TooLarge { what, path: path.to_owned(), max });
    }
    Ok(held)
}

/// What is no file, such as the pipe of a shell, says nothing by its mode.
fn refuse_exposed(what: &'static str, path: &Path, found: &std::fs::Metadata) -> Result<(), Error> {
    let mode = found.permissions().mode() & 0o7777;
    if found.is_file() && mode & FORBIDDEN_MODE != 0 {
        return Err(Error::Exposed { what, path: path.to_owned(), mode });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(held: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        secrets(Path::new("k"), held).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_is_a_key_and_what_is_no_text_is_one() {
        let (first, second) = (b"the first of them".to_vec(), b"the second of them".to_vec());
        assert_eq!(keys(b"the first of them").unwrap(), std::slice::from_ref(&first));
        assert_eq!(keys(b"\n the first of them \r\n\n\tthe second of them\n").unwrap(), [first, second]);
        let binary = b"\x01 sixteen bytes\n and a second line of it\xff";
        assert_eq!(keys(binary).unwrap(), [binary.to_vec()]);
        assert!(keys(b"fifteen bytes..").unwrap_err().contains("holds 15 bytes, too few"));
        assert!(keys(b"the first of them\n\nshort\n").unwrap_err().contains("5 bytes on line 3, too few"));
        for nothing in [&b""[..], b"\n \n"] {
            assert!(keys(nothing).unwrap_err().contains("holds 0 bytes, too few"));
        }
        assert_eq!(keys("the first of them\n".repeat(KEYS_MAX).as_bytes()).unwrap().len(), KEYS_MAX);
        assert!(keys("the first of them\n".repeat(KEYS_MAX + 1).as_bytes()).unwrap_err().contains("9 keys"));
    }

    #[test]
    fn a_secret_that_others_may_see_or_change_is_refused_by_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster.key");
        std::fs::write(&path, "the secret of these tests").unwrap();
        let linked = dir.path().join("linked.key");
        std::os::unix::fs::symlink(&path, &linked).unwrap();
        let chmod = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let identities = [Identity::KeyFile(path.clone()), Identity::KeyFile(linked)];
        for mode in [0o600, 0o400, 0o640, 0o440] {
            chmod(mode);
            for identity in &identities {
                assert!(identity.read().is_ok() && identity.check_permissions().is_ok(), "{mode:o}");
            }
        }
        for (mode, words) in [
            (0o644, "mode 0644, by which everybody may read it"),
            (0o604, "everybody may read it"),
            (0o666, "everybody may change it"),
            (0o602, "everybody may change it"),
            (0o660, "its group may change it"),
            (0o620, "its group may change it"),
        ] {
            chmod(mode);
            for identity in &identities {
                let read = identity.read().map(drop).unwrap_err().to_string();
                assert!(read.contains(words) && read.contains("chmod 600") && read.contains(".key"), "{read}");
                assert_eq!(identity.check_permissions().unwrap_err().to_string(), read);
            }
        }
        assert!(Identity::KeyFile(dir.path().join("not here")).check_permissions().is_ok());
        let pem = |key| Identity::Pem { ca: "/ca".into(), cert: "/cert".into(), key };
        assert!(pem(path).check_permissions().unwrap_err().to_string().contains("private key file"));
    }
}
