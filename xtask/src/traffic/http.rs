//! As much of HTTP/1.1 as servers and clients of a lab speak: heads, bodies with a length, and one upgrade.

use std::io::{self, BufRead, ErrorKind, Read};

use anyhow::{Context, Result, bail, ensure};

const HEAD_BYTES_MAX: u64 = 8192;
const BODY_BYTES_MAX: usize = 1 << 20;

/// The protocol that `/echo-stream` upgrades to: each line is answered by the backend's name, a space, and the line.
pub(super) const ECHO_LINES: &str = "echo-lines";

/// First line and fields of a request or response.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) first: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads one; none if the peer has closed instead.
    pub(super) fn read(input: &mut impl BufRead) -> Result<Option<Self>> {
        let mut input = input.take(HEAD_BYTES_MAX);
        let Some(first) = line(&mut input)? else { return Ok(None) };
        let mut fields = Vec::new();
        loop {
            let line = line(&mut input)?.context("the connection ended within a head")?;
            if line.is_empty() {
                return Ok(Some(Self { first, fields }));
            }
            let (name, value) = line.split_once(':').with_context(|| format!("no field: {line:?}"))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// A field's value; the name in lower case.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body that the head announces.
    pub(super) fn read_body(&self, input: &mut impl BufRead) -> Result<String> {
        let Some(length) = self.field("content-length") else { return Ok(String::new()) };
        let length: usize = length.parse().with_context(|| format!("content-length {length:?}"))?;
        ensure!(length <= BODY_BYTES_MAX, "a body of {length} bytes is too long");
        let mut body = vec![0; length];
        input.read_exact(&mut body).context("the connection ended within a body")?;
        String::from_utf8(body).context("the body is not text")
    }
}

/// Tells a body from another (FNV-1a).
pub(super) fn digest(body: &str) -> u64 {
    body.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// A line without its end; none at the end of the input.
fn line(input: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    match line.strip_suffix('\n') {
        Some(line) => Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_owned())),
        None => bail!("a line that is too long or does not end"),
    }
}

/// Whether a read ended since its time was up.
pub(super) fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_head_and_body() {
        let mut input = &b"GET /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi"[..];
        let head = Head::read(&mut input).unwrap().unwrap();
        assert_eq!((head.first.as_str(), head.field("host")), ("GET /x HTTP/1.1", Some("a")));
        assert_eq!(head.read_body(&mut input).unwrap(), "hi");
        assert!(Head::read(&mut input).unwrap().is_none());
    }

    #[test]
    fn refuses_what_never_ends() {
        let endless = vec![b'x'; 1 << 20];
        assert!(Head::read(&mut endless.as_slice()).is_err());
        assert!(Head::read(&mut &b"GET / HTTP/1.1\r\nHost: a\r\n"[..]).is_err());
        let huge = Head::read(&mut &b"x\r\nContent-Length: 99999999999\r\n\r\n"[..]).unwrap().unwrap();
        assert!(huge.read_body(&mut &b""[..]).is_err());
    }
}
