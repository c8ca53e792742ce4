//! `rediss://`: Redis over TLS, with a certificate that we check and one of ours that it checks.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use retry_common::key::FrameKey;
use retry_testbed::net::fabric::group;
use retry_testbed::scene::{asker, counted, eventually, frame, is_root};

use super::site::{BY_MULTICAST, Site, answer, told};

use super::redis_server::RedisServer;

const KEY: FrameKey = FrameKey::new(0x715, 1);

/// An authority `<prefix>ca.pem`, and what it signed for `names`: `<prefix>server.pem` and `.key`, `<prefix>client.pem` and `.key`.
fn certificates(directory: &Path, prefix: &str, names: &[String]) {
    let save =
        |name: &str, text: &str| std::fs::write(directory.join(format!("{prefix}{name}")), text).expect("a file");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A certificate that is named as its authority is would be taken for one that signed itself.
    authority.distinguished_name.push(DnType::CommonName, format!("{prefix}authority"));
    let key = KeyPair::generate().expect("a key");
    save("ca.pem", &authority.self_signed(&key).expect("a certificate").pem());
    let issuer = Issuer::new(authority, key);
    for (who, names, purpose) in
        [("server", names, ExtendedKeyUsagePurpose::ServerAuth), ("client", &[], ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut leaf = CertificateParams::new(names).expect("names");
        leaf.extended_key_usages = vec![purpose];
        leaf.distinguished_name.push(DnType::CommonName, who);
        let key = KeyPair::generate().expect("a key");
        save(&format!("{who}.pem"), &leaf.signed_by(&key, &issuer).expect("a certificate").pem());
        save(&format!("{who}.key"), &key.serialize_pem());
    }
}

#[test]
fn both_ends_are_checked() {
    if !is_root("both_ends_are_checked") {
        return;
    }
    let site = Site::new();
    let directory = tempfile::tempdir().expect("a directory");
    let names = [site.host("redis").addr.to_string()];
    certificates(directory.path(), "", &names);
    certificates(directory.path(), "other-", &names);
    let redis = RedisServer::with_tls(site.host("redis"), directory.path());
    let address = format!("rediss://{}", redis.address());
    let file = |name: &str| directory.path().join(name).to_string_lossy().into_owned();
    let [ca, client, key] = ["ca.pem", "client.pem", "client.key"].map(file);
    let [other_ca, other_client, other_key] = ["other-ca.pem", "other-client.pem", "other-client.key"].map(file);

    let right = ["-redis-tls-ca", &ca, "-redis-tls-cert", &client, "-redis-tls-key", &key];
    let shared = [&["-cache-backend", "redis"], &right[..]].concat();
    let _loss = site.deafen("two");
    let one = site.endpoint("one", "off", &address, &shared);
    let bytes = frame(KEY, 500, 1);
    {
        let _two = site.endpoint("two", "off", &address, &shared);
        let watch = site.watch(&[group(0)]);
        site.publisher().send(group(0), &bytes).expect("a frame leaves");
        counted(&one, "bre_store_frames_written_total", &[], 1);
        assert!(redis.frame(KEY).expect("the frame in Redis") == bytes, "byte for byte");
        assert_eq!(answer(&asker(site.host("client")), site.host("two").nack_address(), KEY), Some(BY_MULTICAST));
        assert!(watch.repairs(KEY, 1)[0].payload == bytes, "byte for byte");
        watch.end();
    }
    for (what, flags) in [
        (
            "an authority that did not sign its certificate",
            ["-redis-tls-ca", &other_ca, "-redis-tls-cert", &client, "-redis-tls-key", &key].as_slice(),
        ),
        (
            "a certificate of ours that its authority did not sign",
            &["-redis-tls-ca", &ca, "-redis-tls-cert", &other_client, "-redis-tls-key", &other_key],
        ),
        ("no certificate of ours", &["-redis-tls-ca", &ca]),
        ("the system's authorities", &[]),
    ] {
        let two = site.unconnected("two", "off", &address, flags);
        eventually(what, || told(&two, "the shared store is lost") == 1);
        assert_eq!(told(&two, "connected to the shared store"), 0, "{what}\n{}", two.log());
    }
}
