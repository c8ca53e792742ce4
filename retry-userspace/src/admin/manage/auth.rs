//! Who may ask: the bearer token (RFC 6750).

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::settings::AdminToken;

/// What comparing time may tell of a token's length: in how many of these it fits.
const PAD: usize = 1_024;

/// The token, padded so that comparing takes as long for every guess.
pub(in crate::admin) struct Token {
    padded: Vec<u8>,
    len: usize,
}

impl Token {
    pub(in crate::admin) fn new(token: &AdminToken) -> Self {
        let mut padded = token.0.as_bytes().to_vec();
        let len = padded.len();
        padded.resize(len.next_multiple_of(PAD), 0);
        Self { padded, len }
    }

    /// True when `guess` is the token. The time depends on the length of the guess, which its sender knows, and on
    /// nothing of the token but its padded length.
    fn is(&self, guess: &[u8]) -> bool {
        let mut padded = vec![0; self.padded.len()];
        padded.iter_mut().zip(guess).for_each(|(to, from)| *to = *from);
        (padded.ct_eq(&self.padded) & guess.len().ct_eq(&self.len)).into()
    }
}

/// The token in force, which a reload may change; none: there is none.
#[derive(Clone, Default)]
pub(crate) struct CurrentToken(Arc<ArcSwapOption<Token>>);

impl fmt::Debug for CurrentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurrentToken(***)")
    }
}

impl CurrentToken {
    /// The token of the settings.
    pub(crate) fn new(token: Option<&AdminToken>) -> Self {
        let current = Self::default();
        current.set(token);
        current
    }

    /// From the next request on this is the token.
    pub(crate) fn set(&self, token: Option<&AdminToken>) {
        self.0.store(token.map(Token::new).map(Arc::new));
    }

    /// The one in force.
    pub(in crate::admin) fn get(&self) -> Option<Arc<Token>> {
        self.0.load_full()
    }
}

/// Lets through what carries the token. Without one, what is not of a foreign page.
pub(super) async fn admit(State(token): State<CurrentToken>, request: Request, next: Next) -> Response {
    match token.get() {
        Some(token) => bearer(&token, request, next).await,
        None => no_foreign_page(request, next).await,
    }
}

/// True when the request carries the token.
pub(in crate::admin) fn carries(headers: &HeaderMap, token: &Token) -> bool {
    presented(headers).is_some_and(|guess| token.is(guess))
}

/// Lets through what carries the token.
async fn bearer(token: &Token, request: Request, next: Next) -> Response {
    match presented(request.headers()) {
        Some(guess) if token.is(guess) => next.run(request).await,
        Some(_) => unauthorized(
            HeaderValue::from_static(r#"Bearer realm="retry-endpoint", error="invalid_token""#),
            "the token is not that of -admin-token-file or ADMIN_TOKEN",
        ),
        None => unauthorized(
            HeaderValue::from_static(r#"Bearer realm="retry-endpoint""#),
            "a header Authorization: Bearer with the token is needed",
        ),
    }
}

/// Without a token the API serves this host. A page of anyone's, in a browser there, could send writes to it: those carry
/// the header Origin (Fetch standard), and programs send none.
async fn no_foreign_page(request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::ORIGIN) {
        let reason = "requests of web pages are served only with a token: -admin-token-file or ADMIN_TOKEN";
        return ApiError::new(StatusCode::FORBIDDEN, "origin", reason).into_response();
    }
    next.run(request).await
}

/// The token of the header; the scheme's case does not matter (RFC 9110, section 11.1).
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

fn unauthorized(challenge: HeaderValue, reason: &str) -> Response {
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", reason);
    ([(header::WWW_AUTHENTICATE, challenge)], error).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_is_the_token() {
        for text in ["secret".to_owned(), "s".repeat(PAD), "s".repeat(PAD + 1)] {
            let token = Token::new(&AdminToken(text.clone()));
            assert!(token.is(text.as_bytes()));
            let longer = format!("{text}s");
            // What stands in the padding is no token either.
            let padded = format!("{text}\0");
            for guess in [&text[1..], &longer, &padded, "", &text.to_uppercase(), &"s".repeat(5 * PAD)] {
                assert!(!token.is(guess.as_bytes()), "{} bytes for {}", guess.len(), text.len());
            }
        }
    }

    #[test]
    fn the_header_is_read_as_the_rfc_has_it() {
        let presented = |text: &'static str| {
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))]);
            presented(&headers).map(|token| String::from_utf8_lossy(token).into_owned())
        };
        for text in ["Bearer secret", "bearer secret", "BEARER  secret", "Bearer secret "] {
            assert_eq!(presented(text).as_deref(), Some("secret"), "{text}");
        }
        for text in ["", "Bearer", "Basic secret", "Bearersecret", "secret"] {
            assert_eq!(presented(text), None, "{text}");
        }
        assert_eq!(super::presented(&HeaderMap::new()), None);
    }
}
