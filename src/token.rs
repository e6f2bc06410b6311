//! Tokens: what a client shows to be let in, and the files that both sides keep them in.
//!
//! A file has one token per line; blank lines and those that begin with `#` count for nothing. A node takes every token of
//! a file, so that one can be replaced without a moment in which neither is good; a client shows the first.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use subtle::{Choice, ConstantTimeEq as _};

/// The shortest token, in bytes: less could be guessed.
pub const TOKEN_BYTES_MIN: usize = 16;
/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 1024;
/// The most tokens of one file.
pub const FILE_TOKENS_MAX: usize = 64;
/// The largest file of tokens, in bytes.
pub const FILE_BYTES_MAX: u64 = 128 * 1024;
/// What others than owner and group may not be able to do with a file of tokens: read it, or write it.
const OPEN_TO_OTHERS: u32 = 0o006;

/// A token, of which nothing is ever printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Reads a token: [`TOKEN_BYTES_MIN`] to [`TOKEN_BYTES_MAX`] visible ASCII characters.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// The text to show to a node.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// What is kept of a token to know it again: its SHA-256.
#[derive(Clone, Copy)]
pub struct TokenDigest([u8; SHA256_OUTPUT_LEN]);

impl TokenDigest {
    /// Of whatever was shown as a token.
    #[must_use]
    pub fn of(shown: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, shown).as_ref());
        Self(bytes)
    }

    /// Whether it is one of `known`; how long that takes says nothing of which, or how nearly.
    #[must_use]
    pub fn is_among(&self, known: &[Self]) -> bool {
        known.iter().fold(Choice::from(0), |found, known| found | self.0.ct_eq(&known.0)).into()
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenDigest(hidden)")
    }
}

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system would not show it.
    #[error("cannot read the tokens in {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Whoever is on this machine could take its tokens, or put their own there.
    #[error(
        "{path}: mode {mode:04o} lets everybody on this machine read or write the tokens; chmod o-rw it, as in 0600 or 0640"
    )]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else than tokens. What it holds is not shown.
    #[error(
        "{path}: {what}; want one token per line, of {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} visible ASCII characters, as from `openssl rand -hex 32`"
    )]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        what: String,
    },
}

/// Reads a file of tokens: at least one.
pub fn read_file(path: &Path) -> Result<Vec<Token>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    // Of what was opened, not of what the name may lead to by now.
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & OPEN_TO_OTHERS != 0 {
        return Err(Error::OpenToOthers { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    parse_file(&text).map_err(|what| Error::Malformed { path: path.to_owned(), what })
}

fn parse_file(text: &str) -> Result<Vec<Token>, String> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("larger than {FILE_BYTES_MAX} bytes"));
    }
    let mut tokens = Vec::new();
    for (place, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        tokens.push(Token::parse(line).ok_or_else(|| format!("line {} is no token", place + 1))?);
    }
    match tokens.len() {
        0 => Err("there is no token in it".to_owned()),
        1..=FILE_TOKENS_MAX => Ok(tokens),
        count => Err(format!("{count} tokens, more than {FILE_TOKENS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ONE: &str = "0123456789abcdef";

    #[test]
    fn a_file_has_one_token_per_line() {
        let tokens = parse_file(&format!("# old\n\n{ONE}\r\n  {ONE}ffff  \n")).unwrap();
        assert_eq!(tokens, [Token::parse(ONE).unwrap(), Token::parse(&format!("{ONE}ffff")).unwrap()]);
        for (text, why) in [
            (String::new(), "no token"),
            ("# nothing\n".to_owned(), "no token"),
            (format!("{ONE}\nshort\n"), "line 2"),
            (format!("{ONE} {ONE}"), "line 1"),
            ("x".repeat(TOKEN_BYTES_MAX + 1), "line 1"),
            (format!("{ONE}\n").repeat(FILE_TOKENS_MAX + 1), "more than 64"),
        ] {
            let error = parse_file(&text).unwrap_err();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains("short") && !error.contains(ONE), "{error} gives a secret away");
        }
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ONE).unwrap();
        for (mode, is_fine) in [(0o600, true), (0o640, true), (0o644, false), (0o602, false), (0o660, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_file(file.path()).is_ok(), is_fine, "{mode:o}");
        }
        assert!(matches!(read_file(Path::new("/nowhere/token")), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn a_token_is_known_by_its_digest_and_never_printed() {
        let known = [TokenDigest::of(b"a"), TokenDigest::of(b"b")];
        assert!(TokenDigest::of(b"b").is_among(&known));
        assert!(!TokenDigest::of(b"c").is_among(&known) && !TokenDigest::of(b"a").is_among(&[]));
        let shown = format!("{:?} {:?}", Token::parse(ONE).unwrap(), known[0]);
        assert_eq!(shown, "Token(hidden) TokenDigest(hidden)");
    }
}
