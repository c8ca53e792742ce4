//! What goes wrong with a command, and what that says of the next one.

use std::fmt::{self, Display};

use redis::{ErrorKind, RedisError, RetryMethod, ServerErrorKind};

use crate::backoff::Failure;

/// What went wrong with a command.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// No answer in time.
    Late,
    /// An error, by the library or by the server.
    Redis(RedisError),
    /// There is no connection.
    NotConnected,
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("no answer in time"),
            Self::Redis(error) => error.fmt(f),
            Self::NotConnected => f.write_str("not connected"),
        }
    }
}

/// What kind of loss a fault is, for the log: the same kind is not told twice in a row.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Cause {
    /// The server refuses us: a password, a permission.
    Refused,
    /// TLS could not be agreed: an authority, a certificate.
    Tls,
    /// It cannot be reached, or does not answer.
    Unreachable,
}

impl Cause {
    /// The kind of a fault.
    pub(super) fn of(fault: &Fault) -> Self {
        let Fault::Redis(error) = fault else { return Self::Unreachable };
        // The library passes on as text what rustls says, and of a cluster what its nodes say.
        let text = error.to_string().to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if is_refusal(error) || says(&["noauth", "wrongpass", "noperm"]) {
            Self::Refused
        } else if says(&["certificate", "unknownissuer", "tls"]) {
            Self::Tls
        } else {
            Self::Unreachable
        }
    }
}

/// What another attempt could change.
pub(super) fn judge(fault: Fault) -> Failure<Fault> {
    match &fault {
        Fault::Redis(error) if is_answer(error) => Failure::Definitive(fault),
        Fault::Redis(_) | Fault::Late | Fault::NotConnected => Failure::Transient(fault),
    }
}

/// A server at work that will not do this: it is full, cannot write its disk, does not know the command, or may not. Codes
/// that the library has no name for are such answers, but for two that pass by themselves.
fn is_answer(error: &RedisError) -> bool {
    let passes = matches!(error.code(), Some("BUSY" | "NOREPLICAS"));
    let is_answer = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError) | ErrorKind::Extension);
    is_refusal(error) || is_answer && !passes
}

/// Wrong credentials, or a user who may not.
pub(super) fn is_refusal(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm))
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// The user may not do this, and may do other things.
pub(super) fn is_forbidden(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(ServerErrorKind::NoPerm))
}

/// The connection is of no more use: it broke, or a failover made its server a replica.
pub(super) fn is_end(error: &RedisError) -> bool {
    matches!(error.retry_method(), RetryMethod::Reconnect | RetryMethod::ReconnectFromInitialConnections)
        || error.is_connection_dropped()
        || matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_stands_is_told_from_one_that_passes() {
        let says = |code: &str| judge(Fault::Redis(redis::make_extension_error(code.to_owned(), None)));
        for code in ["OOM", "MISCONF", "WRONGTYPE", "NOAUTH", "WRONGPASS"] {
            assert!(matches!(says(code), Failure::Definitive(_)), "{code}");
        }
        for code in ["BUSY", "NOREPLICAS"] {
            assert!(matches!(says(code), Failure::Transient(_)), "{code}");
        }
        let server = |kind: ServerErrorKind| judge(Fault::Redis((ErrorKind::Server(kind), "said").into()));
        for kind in [ServerErrorKind::ResponseError, ServerErrorKind::NoPerm] {
            assert!(matches!(server(kind), Failure::Definitive(_)), "{kind:?}");
        }
        for kind in [
            ServerErrorKind::ReadOnly,
            ServerErrorKind::BusyLoading,
            ServerErrorKind::Moved,
            ServerErrorKind::TryAgain,
            ServerErrorKind::ClusterDown,
            ServerErrorKind::MasterDown,
        ] {
            assert!(matches!(server(kind), Failure::Transient(_)), "{kind:?}");
        }
        assert!(matches!(judge(Fault::Late), Failure::Transient(_)));
        assert!(matches!(judge(Fault::NotConnected), Failure::Transient(_)));
    }
}
