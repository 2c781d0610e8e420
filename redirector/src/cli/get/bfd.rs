//! BFD sessions with routers. The agent tells.

use anyhow::{Context as _, Result, bail};

use crate::agent::control::{self, Answer, Request};
use crate::bfd::Status;
use crate::bfd::packet::State;
use crate::cli::output::{Output, Row, ago, cell};
use crate::cli::target::Target;

fn name(state: State) -> &'static str {
    match state {
        State::AdminDown => "admin-down",
        State::Down => "down",
        State::Init => "init",
        State::Up => "up",
    }
}

/// Microseconds, as people would write them.
fn time(us: u64) -> String {
    humantime::format_duration(std::time::Duration::from_micros(us)).to_string()
}

impl Row for Status {
    fn header() -> &'static [&'static str] {
        &["PEER", "INTERFACE", "STATE", "FOR", "PEER-STATE", "INTERVAL", "DETECTION", "UPS", "DOWNS", "LAST", "TROUBLE"]
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.peer.to_string(),
            self.interface.clone().unwrap_or_else(|| "(multihop)".to_owned()),
            name(self.state).to_owned(),
            ago(self.for_ms),
            name(self.remote_state).to_owned(),
            cell(self.interval_us.map(time)),
            cell(self.detection_us.map(time)),
            self.ups.to_string(),
            self.downs.to_string(),
            self.diagnostic.clone(),
            cell(self.trouble.as_deref()),
        ]
    }
}

pub(super) fn show(target: &Target, output: Output) -> Result<()> {
    let config = target.config()?.context("the agent is found by its configuration: name it by --config FILE")?;
    match control::ask(&control::path(&config), &Request::Bfd)? {
        Answer::Bfd { sessions } => output.list(sessions),
        _ => bail!("the agent answers what was not asked"),
    }
}
