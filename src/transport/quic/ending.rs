//! How connections end: the codes that this program closes with, and what an end means to it.

use quinn::{ConnectionError, VarInt};

/// The hellos do not fit.
pub(super) const REFUSED: u32 = 1;
/// Another connection of the pair stands.
pub(super) const DUPLICATE: u32 = 2;
/// Both ends are the same process.
pub(super) const MYSELF: u32 = 3;
/// The node shuts down.
pub(super) const LEAVING: u32 = 4;
/// What arrived cannot be understood.
pub(super) const MALFORMED: u32 = 5;
/// Another connection of the pair took its place.
pub(super) const REPLACED: u32 = 6;
/// No room for another peer.
pub(super) const TOO_MANY: u32 = 7;
/// A lane of the connection does not work any more.
pub(super) const BROKEN: u32 = 8;
/// A call is over before its end.
pub(super) const CALL_CANCELLED: u32 = 9;

/// TLS alerts travel as QUIC error codes from 0x100 on (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;
/// The longest reason sent, in bytes: it must fit one packet.
const REASON_BYTES_MAX: usize = 1000;

/// Why a connection ended, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// One end's certificate is not of the other's CA.
    Tls(String),
    /// The peer did not like the hello.
    Refused(String),
    /// The peer keeps another connection.
    Duplicate,
    /// The peer is this very process.
    Myself,
    /// Anything else.
    Broken(String),
}

impl Ending {
    pub(super) fn of(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(error) if TLS_ALERTS.contains(&u64::from(error.code)) => {
                Self::Tls(tls_advice("its certificate was not accepted", &error.reason))
            }
            ConnectionError::ConnectionClosed(close) if TLS_ALERTS.contains(&u64::from(close.error_code)) => {
                let reason = String::from_utf8_lossy(&close.reason);
                Self::Tls(tls_advice("it did not accept our certificate", &reason))
            }
            ConnectionError::ApplicationClosed(close) => {
                let reason = String::from_utf8_lossy(&close.reason).into_owned();
                match u32::try_from(close.error_code.into_inner()).unwrap_or(0) {
                    REFUSED => Self::Refused(reason),
                    DUPLICATE => Self::Duplicate,
                    MYSELF => Self::Myself,
                    _ => Self::Broken(reason),
                }
            }
            ConnectionError::TimedOut => Self::Broken("it is silent".to_owned()),
            ConnectionError::Reset => Self::Broken("it has restarted".to_owned()),
            other => Self::Broken(other.to_string()),
        }
    }

    pub(super) fn into_words(self) -> String {
        match self {
            Self::Tls(reason) | Self::Refused(reason) | Self::Broken(reason) => reason,
            Self::Duplicate => "another connection to it stands".to_owned(),
            Self::Myself => "it is this node".to_owned(),
        }
    }
}

fn tls_advice(what: &str, detail: &str) -> String {
    let detail = if detail.is_empty() { "no detail given" } else { detail };
    format!("{what} ({detail}): all nodes need the same key_file, or certificates of one CA")
}

/// Closes with a reason that fits a packet.
pub(super) fn close(connection: &quinn::Connection, code: u32, reason: &str) {
    let reason = reason.as_bytes();
    connection.close(VarInt::from_u32(code), reason.get(..REASON_BYTES_MAX).unwrap_or(reason));
}
