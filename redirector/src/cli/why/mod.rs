//! `why`: where a flow goes, and for what reasons.
//!
//! A packet of the flow is made and taken through the very stations that the XDP programs are made of, over a copy of the
//! tables. Nothing is written to the maps, and nothing is counted. Why paths and backends are out is the agent's to know:
//! it is asked, if it runs.

mod answer;
mod question;
mod tables;
#[cfg(test)]
mod tests;
mod text;

use anyhow::Result;

use super::get;
use super::output::{Names, Output};
use super::target::Target;
use answer::Answer;
use question::{End, Protocol, Question};

/// Tell where a flow goes, and why.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// Its protocol.
    #[arg(value_enum)]
    protocol: Protocol,
    /// The client's address and port, such as 10.0.0.1:1234 or [2001:db8::1]:1234; of ICMP the port is the identifier and
    /// may be left out.
    client: End,
    /// The VIP's address and port; of ICMP without a port.
    vip: End,
    /// Ask as a new connection; else as a packet of an established one.
    #[arg(long)]
    syn: bool,
    /// The DSCP of its packets, by which a service may tell classes.
    #[arg(long, value_name = "0..63", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..64))]
    dscp: u8,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

impl Why {
    pub(super) fn run(self) -> Result<()> {
        let question = Question::new(self.protocol, self.client, self.vip, self.syn)?.marked(self.dscp);
        let maps = self.target.maps()?;
        let names = Names::read(&maps)?;
        let tables = tables::read(&maps, &names, &question)?;
        let mut answer = Answer::new(&tables, &names, &question);
        answer.explain(&names, &get::told_of_paths(&self.target), &get::told_of_backends(&self.target));
        answer.count(get::refused(&maps, &names)?);
        self.output.one(&answer, || answer.text())
    }
}
