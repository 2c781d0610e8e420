//! `pki`: the certificates by which agents know each other.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;

use super::output::{Output, Row, cell};
use crate::pki::{self, Certificate};

/// Make and look at the certificates by which agents know each other.
#[derive(Debug, clap::Args)]
pub(super) struct Pki {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a cluster's certificate authority: ca.crt, which every node gets, and ca.key, which none gets.
    Init(Init),
    /// Issue a certificate for a node, or renew it: node-ID.crt and node-ID.key.
    Issue(Issue),
    /// Show whom certificates are for, until when, and their fingerprints.
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct Init {
    /// Where the authority's files go.
    #[arg(long)]
    dir: PathBuf,
    /// The cluster's id, as in [cluster].
    #[arg(long, value_name = "ID")]
    cluster: u32,
    /// Replace an authority that is there, with which all certificates lose their worth.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Issue {
    /// Where the authority's files are.
    #[arg(long)]
    dir: PathBuf,
    /// The node's id, 1 to 254.
    #[arg(long, value_name = "ID")]
    node: u16,
    /// Where the node's files go; default: beside the authority's.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long the certificate is good.
    #[arg(long, value_name = "N", default_value_t = 365)]
    days: u32,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// Certificates in PEM.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl Pki {
    pub(super) fn run(self) -> Result<()> {
        match self.what {
            What::Init(Init { dir, cluster, force }) => {
                let made = pki::init(&dir, cluster, force)?;
                told(&made);
                println!("keep {} to yourself: who has it can be any node of cluster {cluster}", made.key.display());
                Ok(())
            }
            What::Issue(Issue { dir, node, out, days }) => {
                told(&pki::issue(&dir, node, out.as_deref().unwrap_or(&dir), days)?);
                Ok(())
            }
            What::Show(Show { files, output }) => {
                let now = SystemTime::now();
                let mut lines = Vec::new();
                for file in &files {
                    lines.extend(Certificate::read(file)?.iter().map(|certificate| Line::new(file, certificate, now)));
                }
                output.list(lines)
            }
        }
    }
}

fn told(made: &pki::Issued) {
    println!("wrote {} and {}", made.certificate.display(), made.key.display());
}

/// What is shown of a certificate.
#[derive(Debug, Serialize)]
struct Line {
    file: String,
    subject: String,
    issuer: String,
    authority: bool,
    node: Option<u8>,
    cluster: Option<u32>,
    not_before: String,
    not_after: String,
    state: &'static str,
    fingerprint: String,
}

impl Line {
    fn new(file: &Path, certificate: &Certificate, now: SystemTime) -> Self {
        Self {
            file: file.display().to_string(),
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            authority: certificate.authority,
            node: certificate.node.map(|name| name.node),
            cluster: certificate.cluster,
            not_before: humantime::format_rfc3339_seconds(certificate.not_before).to_string(),
            not_after: humantime::format_rfc3339_seconds(certificate.not_after).to_string(),
            state: match certificate.is_valid_at(now) {
                true => "valid",
                false if now < certificate.not_before => "not yet",
                false => "expired",
            },
            fingerprint: certificate.fingerprint_text(),
        }
    }
}

impl Row for Line {
    fn header() -> &'static [&'static str] {
        &["FILE", "SUBJECT", "NODE", "CLUSTER", "NOT BEFORE", "NOT AFTER", "STATE", "SHA-256"]
    }

    fn cells(&self) -> Vec<String> {
        let node = if self.authority { "ca".to_owned() } else { cell(self.node) };
        let (before, after) = (self.not_before.clone(), self.not_after.clone());
        let state = self.state.to_owned();
        let (file, subject, fingerprint) = (self.file.clone(), self.subject.clone(), self.fingerprint.clone());
        vec![file, subject, node, cell(self.cluster), before, after, state, fingerprint]
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_shown_of_a_certificate() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let certificate = Certificate {
            subject: "CN=one".to_owned(),
            issuer: "CN=ca".to_owned(),
            node: Some(pki::NodeName { node: 1, cluster: 7 }),
            cluster: Some(7),
            authority: false,
            not_before: at(100),
            not_after: at(200),
            fingerprint: [0xab; 32],
        };
        let line = |now| Line::new(Path::new("one.crt"), &certificate, at(now));
        assert_eq!(
            (line(99).state, line(100).state, line(200).state, line(201).state),
            ("not yet", "valid", "valid", "expired")
        );
        let fingerprint = ["ab"; 32].join(":");
        let cells =
            ["one.crt", "CN=one", "1", "7", "1970-01-01T00:01:40Z", "1970-01-01T00:03:20Z", "valid", &fingerprint];
        assert_eq!(line(150).cells(), cells);
        let json = serde_json::to_value(line(150)).unwrap();
        assert_eq!((&json["node"], &json["issuer"], &json["authority"]), (&1.into(), &"CN=ca".into(), &false.into()));
        assert_eq!(line(150).cells().len(), Line::header().len());
    }
}
