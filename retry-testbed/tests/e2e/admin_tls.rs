//! TLS of the management API, by a client of rustls and by bytes made by hand.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV6, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use retry_testbed::daemon::Daemon;
use retry_testbed::net::fabric::{Fabric, Host};
use retry_testbed::scene::{PATIENCE, binary, eventually, flags, is_root, two_hosts};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

const API: &str = "[::1]:9401";
/// More than the daemon has room for.
const SILENT: usize = 339;
/// A handshake has ten seconds.
const HANDSHAKE: Duration = Duration::from_secs(20);

type Versions = &'static [&'static SupportedProtocolVersion];
static TLS12: Versions = &[&rustls::version::TLS12];
static TLS13: Versions = &[&rustls::version::TLS13];

/// An authority `<prefix>ca.pem`, and what it signed: `<prefix>leaf.pem` and `.key`, of a server and a client.
fn certificates(directory: &Path, prefix: &str, address: &str) {
    let save =
        |name: &str, text: &str| std::fs::write(directory.join(format!("{prefix}{name}")), text).expect("a file");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, format!("{prefix}authority"));
    let key = KeyPair::generate().expect("a key");
    save("ca.pem", &authority.self_signed(&key).expect("a certificate").pem());
    let issuer = Issuer::new(authority, key);
    let mut leaf = CertificateParams::new(["::1".to_owned(), address.to_owned()]).expect("names");
    leaf.distinguished_name.push(DnType::CommonName, "leaf");
    let key = KeyPair::generate().expect("a key");
    save("leaf.pem", &leaf.signed_by(&key, &issuer).expect("a certificate").pem());
    save("leaf.key", &key.serialize_pem());
}

/// A client that trusts one authority, with a certificate of its own if any.
struct Client<'a> {
    directory: &'a Path,
    trusts: &'a str,
    shows: Option<&'a str>,
    versions: Versions,
    token: Option<&'a str>,
}

impl<'a> Client<'a> {
    fn new(directory: &'a Path, trusts: &'a str) -> Self {
        Self { directory, trusts, shows: None, versions: rustls::ALL_VERSIONS, token: None }
    }

    /// Status of `GET /v1/stats`, or why there is none.
    fn get(&self, host: &Host, address: SocketAddr) -> Result<u16, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        let authority = self.directory.join(format!("{}ca.pem", self.trusts));
        roots.add(CertificateDer::from_pem_file(authority).expect("a certificate")).expect("an authority");
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(self.versions);
        let builder = builder.expect("versions").with_root_certificates(roots);
        let config = match self.shows {
            None => builder.with_no_client_auth(),
            Some(prefix) => {
                let chain = CertificateDer::from_pem_file(self.directory.join(format!("{prefix}leaf.pem")));
                let key = PrivateKeyDer::from_pem_file(self.directory.join(format!("{prefix}leaf.key")));
                builder.with_client_auth_cert(vec![chain.expect("a certificate")], key.expect("a key")).expect("a pair")
            }
        };
        let stream = connect(host, address);
        let connection = ClientConnection::new(Arc::new(config), address.ip().into()).expect("a client");
        let mut stream = StreamOwned::new(connection, stream);
        let token = self.token.map_or(String::new(), |token| format!("Authorization: Bearer {token}\r\n"));
        let request = format!("GET /v1/stats HTTP/1.1\r\nHost: endpoint\r\n{token}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        status.ok_or_else(|| format!("{read:?} {text}"))
    }
}

fn connect(host: &Host, address: SocketAddr) -> TcpStream {
    let stream = host.ns.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("a connection");
    stream.set_read_timeout(Some(HANDSHAKE)).expect("an option");
    stream
}

/// What comes back for these bytes, until the server closes.
fn answer(host: &Host, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(host, api());
    stream.write_all(bytes).expect("sent");
    let mut first = vec![0; 4096];
    // A reset is an end, too.
    let read = stream.read(&mut first).unwrap_or(0);
    first.truncate(read);
    first
}

fn api() -> SocketAddr {
    API.parse().expect("an address")
}

/// A client's first message of TLS (RFC 5246, 7.4.1.2) with this version and without the extension of TLS 1.3: ECDHE with AES-GCM,
/// X25519, ECDSA with P-256.
fn hello(version: [u8; 2]) -> Vec<u8> {
    let extensions: &[u8] = &[
        0, 10, 0, 4, 0, 2, 0, 0x1d, // supported_groups: x25519
        0, 11, 0, 2, 1, 0, // ec_point_formats: uncompressed
        0, 13, 0, 4, 0, 2, 4, 3, // signature_algorithms: ecdsa_secp256r1_sha256
    ];
    let mut body = [&version[..], &[7; 32], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0]].concat();
    body.extend([&[0, u8::try_from(extensions.len()).expect("short")], extensions].concat());
    let length = u8::try_from(body.len()).expect("short");
    let message = [&[1, 0, 0, length], &body[..]].concat();
    [&[22, 3, 1, 0, length + 4], &message[..]].concat()
}

/// The API's flags: certificate and key of `prefix`.
fn tls_flags(directory: &Path, prefix: &str) -> [String; 4] {
    let file = |name: &str| directory.join(format!("{prefix}{name}")).to_string_lossy().into_owned();
    ["-admin-tls-cert".to_owned(), file("leaf.pem"), "-admin-tls-key".to_owned(), file("leaf.key")]
}

#[test]
fn the_api_speaks_tls_and_nothing_else() {
    if !is_root("the_api_speaks_tls_and_nothing_else") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path(), "", "::1");
    certificates(directory.path(), "other-", "::1");
    let tls = tls_flags(directory.path(), "");
    let more: Vec<&str> = ["-admin-addr", API].into_iter().chain(tls.iter().map(String::as_str)).collect();
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");

    for versions in [rustls::ALL_VERSIONS, TLS12, TLS13] {
        let client = Client { versions, ..Client::new(directory.path(), "") };
        assert_eq!(client.get(endpoint, api()), Ok(200), "{versions:?}");
    }
    let refused = Client::new(directory.path(), "other-").get(endpoint, api()).expect_err("another authority");
    assert!(refused.contains("UnknownIssuer"), "{refused}");

    let plain = answer(endpoint, b"GET /v1/stats HTTP/1.1\r\nHost: endpoint\r\n\r\n");
    assert!(!String::from_utf8_lossy(&plain).contains("HTTP"), "{plain:?}");
    // An alert is record type 21: fatal (2), protocol_version (70).
    let old = answer(endpoint, &hello([3, 2]));
    assert_eq!((old.first(), old.get(5..7)), (Some(&21), Some(&[2, 70][..])), "TLS 1.1: {old:02x?}");
    assert_eq!(answer(endpoint, &hello([3, 3])).first(), Some(&22), "TLS 1.2 by the same bytes");
    // Metrics are where they were.
    assert_eq!(daemon.get("/healthz").expect("an answer").0, 200);
}

#[test]
fn clients_show_a_certificate_where_an_authority_is_named() {
    if !is_root("clients_show_a_certificate_where_an_authority_is_named") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, client) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path(), "", &endpoint.addr.to_string());
    certificates(directory.path(), "other-", "::1");
    let tls = tls_flags(directory.path(), "");
    let ca = directory.path().join("ca.pem");
    // No token: these certificates let other hosts in.
    let more = ["-admin-addr", ":9401", "-admin-tls-client-ca", &ca.to_string_lossy()];
    let more: Vec<&str> = more.into_iter().chain(tls.iter().map(String::as_str)).collect();
    let _daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let address = SocketAddr::from(SocketAddrV6::new(endpoint.addr, 9401, 0, 0));
    for (shows, admitted) in [(Some(""), true), (None, false), (Some("other-"), false)] {
        for versions in [TLS12, TLS13] {
            let status = Client { shows, versions, ..Client::new(directory.path(), "") }.get(client, address);
            assert_eq!(status == Ok(200), admitted, "{shows:?} {versions:?}: {status:?}");
            assert!(admitted || status.is_err(), "{shows:?}: {status:?}");
        }
    }
}

/// Connections that never say a word of TLS, or half of one, take nothing from others, and are closed.
#[test]
fn silent_handshakes_are_closed() {
    if !is_root("silent_handshakes_are_closed") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    certificates(directory.path(), "", "::1");
    let tls = tls_flags(directory.path(), "");
    let more: Vec<&str> = ["-admin-addr", API].into_iter().chain(tls.iter().map(String::as_str)).collect();
    let daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs").count();
    let before = open();
    let begun = hello([3, 3]);
    let mut silent: Vec<TcpStream> = (0..SILENT)
        .map(|number| {
            let mut stream = connect(endpoint, api());
            if number % 2 == 0 {
                let _ = stream.write_all(&begun[..begun.len() / 2]);
            }
            stream
        })
        .collect();
    let trusting = Client::new(directory.path(), "");
    for _ in 0..5 {
        let asked = Instant::now();
        assert_eq!(trusting.get(endpoint, api()), Ok(200));
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
    }
    assert!(open() < before + 100, "{} descriptors, {before} before", open());
    // The last one was the last to come, so it has not been closed for another.
    let mut last = silent.pop().expect("many");
    let read = last.read(&mut [0; 16]);
    assert!(matches!(read, Ok(0)), "it is kept open: {read:?}");
}

/// SIGHUP reads certificate, key and token again. What cannot stand changes nothing.
#[test]
fn a_reload_renews_certificate_and_token() {
    if !is_root("a_reload_renews_certificate_and_token") {
        return;
    }
    let fabric = Fabric::flat(1500).expect("a fabric");
    let (endpoint, _) = two_hosts(&fabric);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    certificates(path, "", "::1");
    certificates(path, "new-", "::1");
    let token = path.join("token");
    std::fs::write(&token, "first").expect("written");
    let tls = tls_flags(path, "");
    let more = ["-admin-addr", API, "-admin-token-file", &token.to_string_lossy()];
    let more: Vec<&str> = more.into_iter().chain(tls.iter().map(String::as_str)).collect();
    let mut daemon = Daemon::start(&binary(), &endpoint.ns, &flags("off", &more)).expect("a daemon");
    let ask = |trusts, token| Client { token: Some(token), ..Client::new(path, trusts) }.get(endpoint, api());
    assert_eq!((ask("", "first"), ask("", "second")), (Ok(200), Ok(401)));
    // The umask of a test leaves it open to all.
    assert!(daemon.log().contains("can read -admin-token-file: chmod o-r"), "{}", daemon.log());

    for name in ["leaf.pem", "leaf.key"] {
        std::fs::copy(path.join(format!("new-{name}")), path.join(name)).expect("copied");
    }
    std::fs::write(&token, "second").expect("written");
    daemon.child().signal(Signal::SIGHUP).expect("it is told");
    eventually("the new certificate", || ask("new-", "second") == Ok(200));
    assert_eq!(ask("new-", "first"), Ok(401));
    assert!(ask("", "second").is_err(), "the former authority");

    std::fs::write(path.join("leaf.key"), "no key").expect("written");
    std::fs::write(&token, "third").expect("written");
    daemon.child().signal(Signal::SIGHUP).expect("it is told");
    eventually("it is refused", || daemon.log().contains("-admin-tls-key"));
    assert_eq!((ask("new-", "second"), ask("new-", "third")), (Ok(200), Ok(401)), "nothing has changed");
    let log = daemon.log();
    for secret in ["first\"", "=first", "second\"", "=second"] {
        assert!(!log.contains(secret), "{log}");
    }
}
