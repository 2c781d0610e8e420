use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("redirector-pki-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn days_left(certificate: &Certificate) -> u64 {
    let left = certificate.not_after.duration_since(SystemTime::now()).unwrap() + Duration::from_secs(60);
    left.as_secs() / (24 * 3600)
}

#[test]
fn an_authority_and_a_node_are_made() {
    let scratch = Scratch::new();
    let ca = init(&scratch.0, 7, false).unwrap();
    assert_eq!((ca.certificate.file_name().unwrap(), mode(&ca.certificate)), ("ca.crt".as_ref(), 0o644));
    assert_eq!((ca.key.file_name().unwrap(), mode(&ca.key)), ("ca.key".as_ref(), 0o600));
    let said = &Certificate::read(&ca.certificate).unwrap()[0];
    assert_eq!((said.authority, said.node, said.cluster, days_left(said)), (true, None, Some(7), 3652));

    let out = scratch.0.join("out");
    fs::create_dir(&out).unwrap();
    let node = issue(&scratch.0, 254, &out, 365).unwrap();
    assert_eq!((node.certificate, mode(&node.key)), (out.join("node-254.crt"), 0o600));
    let said = &Certificate::read(&out.join("node-254.crt")).unwrap()[0];
    assert_eq!((said.authority, said.node), (false, Some(NodeName { node: 254, cluster: 7 })));
    assert_eq!((said.cluster, days_left(said), said.issuer.as_str()), (Some(7), 365, "CN=Redirector cluster 7 CA"));
    assert!(said.is_valid_at(SystemTime::now()));
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");

    // Issued again, it is a new one with a new key.
    let key = fs::read(&node.key).unwrap();
    issue(&scratch.0, 254, &out, 1).unwrap();
    assert_ne!(fs::read(&node.key).unwrap(), key);
    assert_eq!(days_left(&Certificate::read(&out.join("node-254.crt")).unwrap()[0]), 1);
}

#[test]
fn the_fingerprint_is_the_digest_of_the_der_form() {
    let scratch = Scratch::new();
    let der = pem(&init(&scratch.0, 7, false).unwrap().certificate).unwrap().remove(0);
    let said = Certificate::from_der(&der).unwrap();
    assert_eq!(said.fingerprint, certificate::sha256(&der));
    let text = said.fingerprint_text();
    assert_eq!((text.len(), text.matches(':').count()), (95, 31));
    // FIPS 180-4's example.
    let abc = u128::from_be_bytes(certificate::sha256(b"abc")[..16].try_into().unwrap());
    assert_eq!(abc, 0xba78_16bf_8f01_cfea_4141_40de_5dae_2223);
}

#[test]
fn an_authority_is_replaced_by_force_alone() {
    let scratch = Scratch::new();
    let made = init(&scratch.0, 7, false).unwrap();
    let before = fs::read(&made.key).unwrap();
    let refused = init(&scratch.0, 7, false).unwrap_err();
    assert!(matches!(&refused, Error::Exists(_)) && refused.to_string().contains("--force"), "{refused}");
    // Half of one is one too: its key may have signed something.
    fs::remove_file(&made.certificate).unwrap();
    assert!(matches!(init(&scratch.0, 7, false), Err(Error::Exists(path)) if path == made.key));
    assert_eq!(fs::read(&made.key).unwrap(), before);
    init(&scratch.0, 8, true).unwrap();
    assert_ne!(fs::read(&made.key).unwrap(), before);
    assert_eq!(Certificate::read(&made.certificate).unwrap()[0].cluster, Some(8));
}

#[test]
fn what_cannot_be_is_refused_with_its_mend() {
    let scratch = Scratch::new();
    let (dir, nowhere) = (scratch.0.clone(), scratch.0.join("nowhere"));
    let told = |error: Error| error.to_string();
    assert!(told(init(&nowhere, 7, false).unwrap_err()).contains("mkdir -m 700"));
    assert!(told(issue(&dir, 1, &dir, 365).unwrap_err()).contains("pki init"));
    let ca = init(&dir, 7, false).unwrap();
    assert!(told(issue(&nowhere, 1, &dir, 365).unwrap_err()).contains("mkdir -m 700"));
    assert!(told(issue(&dir, 1, &nowhere, 365).unwrap_err()).contains("mkdir -m 700"));
    for id in [0, 255, 256, u16::MAX] {
        assert!(matches!(issue(&dir, id, &dir, 365), Err(Error::NodeId(refused)) if refused == id));
    }
    for days in [0, 3653, u32::MAX] {
        assert!(matches!(issue(&dir, 1, &dir, days), Err(Error::Days { most: 3651..=3652, .. })));
    }
    for bits in [0o644, 0o640, 0o620] {
        fs::set_permissions(&ca.key, fs::Permissions::from_mode(bits)).unwrap();
        let refused = told(issue(&dir, 1, &dir, 365).unwrap_err());
        assert!(refused.contains("chmod 600") && refused.contains(&format!("{bits:o}")), "{refused}");
    }
    fs::set_permissions(&ca.key, fs::Permissions::from_mode(0o600)).unwrap();
    // Files of two authorities, mixed.
    let other = Scratch::new();
    let others = init(&other.0, 7, false).unwrap();
    fs::copy(&others.certificate, &ca.certificate).unwrap();
    assert!(told(issue(&dir, 1, &dir, 365).unwrap_err()).contains("is not the key of"));
    fs::write(&ca.certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert!(told(issue(&dir, 1, &dir, 365).unwrap_err()).contains("no certificate"));
    // No refusal left anything behind.
    assert!(!dir.join("node-1.crt").exists() && !dir.join("node-1.key").exists());
    assert!(told(Certificate::read(&ca.key).unwrap_err()).contains("holds no certificate"));
    assert!(told(Certificate::read(&nowhere).unwrap_err()).contains("No such file"));
}

#[test]
fn what_an_interrupted_command_left_is_no_hindrance_and_its_permissions_do_not_last() {
    let scratch = Scratch::new();
    let left = scratch.0.join("ca.key.next");
    fs::write(&left, "half a key").unwrap();
    fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
    let made = init(&scratch.0, 7, false).unwrap();
    assert_eq!(mode(&made.key), 0o600);
    assert!(!left.exists());
}

#[test]
fn names_have_one_form() {
    for (node, cluster) in [(1, 0), (254, u32::MAX), (10, 7)] {
        let name = NodeName { node, cluster };
        assert_eq!(name.to_string().parse(), Ok(name));
    }
    let wrong = [
        "",
        "node-1",
        "node-0.cluster-7.redirector",
        "node-255.cluster-7.redirector",
        "node-01.cluster-7.redirector",
        "node-+1.cluster-7.redirector",
        "node-1.cluster-07.redirector",
        "node-1.cluster-7.redirector.",
        "NODE-1.cluster-7.redirector",
        "node-1.cluster-4294967296.redirector",
        "*.cluster-7.redirector",
        "node-1.cluster-7.redirector.example",
        "node-1.node-2.cluster-7.redirector",
    ];
    for text in wrong {
        assert!(text.parse::<NodeName>().is_err(), "{text}");
    }
}

/// Years as far apart as certificates can name them are shown.
#[test]
fn any_year_can_be_shown() {
    for (from, to) in [(1, 1960), (1969, 9999)] {
        let mut wanted = rcgen::CertificateParams::new([]).unwrap();
        (wanted.not_before, wanted.not_after) = (rcgen::date_time_ymd(from, 1, 1), rcgen::date_time_ymd(to, 12, 31));
        let made = wanted.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let said = Certificate::from_der(made.der()).unwrap();
        for time in [said.not_before, said.not_after] {
            let shown = humantime::format_rfc3339_seconds(time).to_string();
            assert!(shown.starts_with("1970-") || shown.starts_with("9999-12-31"), "{shown}");
        }
    }
}

proptest! {
    #[test]
    fn noise_is_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Certificate::from_der(&bytes).is_err());
    }

    #[test]
    fn noise_is_no_name_but_its_own(text in "[a-z0-9.+*-]{0,40}") {
        if let Ok(name) = text.parse::<NodeName>() {
            prop_assert_eq!(name.to_string(), text);
        }
    }
}

/// Damage anywhere in a certificate never panics.
#[test]
fn damaged_certificates_are_read_or_refused() {
    let scratch = Scratch::new();
    let der = pem(&init(&scratch.0, 7, false).unwrap().certificate).unwrap().remove(0);
    for at in 0..der.len() {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = der.to_vec();
            damaged[at] ^= flip;
            if let Ok(said) = Certificate::from_der(&damaged) {
                assert_eq!(said.fingerprint_text().len(), 95);
            }
        }
        assert!(Certificate::from_der(&der[..at]).is_err());
    }
}
