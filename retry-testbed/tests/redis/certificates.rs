//! An authority, a server's certificate and a client's, made for one test.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use retry_testbed::net::fabric::Host;
use retry_testbed::peers::redis::{PORT, Server};

/// The files, in PEM.
pub(crate) struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    /// Certificates for a server at this address, and for a client.
    pub(crate) fn new(address: IpAddr) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        let key = || KeyPair::generate().expect("a key");
        let params = |name: &str| {
            let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
            // Of one name with its issuer a certificate is taken for a self-signed one.
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };

        let mut authority = params("authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = key();
        write("ca.pem", &authority.self_signed(&authority_key).expect("an authority").pem());
        let issuer = Issuer::new(authority, authority_key);

        for (name, san) in
            [("server", SanType::IpAddress(address)), ("client", SanType::IpAddress(IpAddr::from([127, 0, 0, 1])))]
        {
            let mut certificate = params(name);
            certificate.subject_alt_names = vec![san];
            let own = key();
            write(&format!("{name}.pem"), &certificate.signed_by(&own, &issuer).expect("signed").pem());
            write(&format!("{name}.key"), &own.serialize_pem());
        }
        Self { directory }
    }

    /// Starts a server that speaks TLS alone, with its certificate; with `asks_clients` it takes none without one of theirs.
    pub(crate) fn server<'a>(&self, host: &'a Host, asks_clients: bool) -> Server<'a> {
        let (certificate, key, ca) = (self.text("server.pem"), self.text("server.key"), self.text("ca.pem"));
        let port = PORT.to_string();
        let auth = if asks_clients { "yes" } else { "no" };
        let arguments = [
            ["--port", "0"],
            ["--tls-port", &port],
            ["--tls-cert-file", &certificate],
            ["--tls-key-file", &key],
            ["--tls-ca-cert-file", &ca],
            ["--tls-auth-clients", auth],
        ];
        Server::launch(host, PORT, None, arguments.as_flattened()).expect("Redis")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        path_text(&self.path(name))
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}
