//! Real traffic: the servers that backends run, and clients that notice every wrong answer.
//!
//! Everything acts in the network namespace of the thread that calls it; `Host::run` chooses the namespace. Servers name
//! themselves and repeat what they were asked, so that a client can tell whose answer it got, and that it is the right one.

mod account;
mod client;
mod http;
mod load;
mod long;
mod paced;
mod realtime;
mod server;
mod stream;
mod udp;
mod users;

use std::thread;

use anyhow::Result;

pub use account::FlowReport;
pub use client::{Response, fetch, fetch_when_ready, upload};
pub use load::{Load, LoadReport};
pub use long::{LongConnections, LongReport};
pub use paced::{DatagramReport, Datagrams};
pub use realtime::CpuTime;
pub use server::Server;
pub use stream::{Stream, StreamReport, Streaming};
pub use udp::ask;
pub use users::Users;

/// Where servers listen for HTTP.
pub const HTTP_PORT: u16 = 80;
/// Where servers echo datagrams.
pub const ECHO_PORT: u16 = 7;

/// A backend's server, in the foreground.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// The name that answers carry
    #[arg(long)]
    name: String,
}

/// Serves until killed.
pub fn serve(args: ServeArgs) -> Result<()> {
    let _server = Server::start(&args.name)?;
    loop {
        thread::park();
    }
}
