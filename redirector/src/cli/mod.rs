//! The command line: a file for each command. Nothing is decided here; commands ask the maps, the agent or the kernel,
//! and print.
//!
//! Exit status: 0 done, 1 failed, 2 wrong use.

mod output;
mod target;

mod backup;
mod capacity;
mod cluster;
mod decap;
mod doctor;
mod get;
mod guard;
mod incidents;
mod maps;
mod pki;
mod plane;
mod spec;
mod trace;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Redirects packets in XDP on a cluster of hosts that are all active.
#[derive(Debug, Parser)]
#[command(name = "redirector", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground: load or adopt the data plane and look after it.
    Run(plane::Run),
    /// Load the data plane alone and attach it, without an agent.
    Load(plane::Load),
    /// Detach the data plane and leave nothing behind.
    Unload(plane::Unload),
    /// Check a configuration and mark all its mistakes.
    Check(spec::Check),
    /// Change services, pools and paths, all or nothing.
    Apply(spec::Apply),
    /// Show what `apply` would change, and the version to apply it to.
    Diff(spec::Diff),
    /// Begin a cluster with this node, once: its other members join by themselves.
    Bootstrap(cluster::Bootstrap),
    /// Run a witness: a voter without a data plane, for clusters of two nodes.
    Witness(cluster::Witness),
    /// Keep what the cluster agrees on in a file.
    Backup(backup::Backup),
    /// Begin a cluster with this node and what a backup says, once: its other members join by themselves.
    Restore(backup::Restore),
    /// DANGER: let the cluster go on with this node as its only voter, since a majority is lost for good.
    Recover(cluster::Recover),
    /// Wait until this node has a seat in its cluster.
    Join(cluster::Join),
    /// Let a node be no member of the cluster any more.
    Leave(cluster::Leave),
    /// Let a node give its slots and VIPs away in an orderly way, and wait until nobody would miss it.
    Drain(cluster::Drain),
    /// Let a node that was drained have slots and VIPs again.
    Undrain(cluster::Undrain),
    /// Show nodes, services, backends, drains, paths, owners, flows, vips, replication, health, breakers, bfd or stats.
    Get(get::Get),
    /// Show what befell this node and its cluster, from the journal on its disk.
    Incidents(incidents::Incidents),
    /// Show the BPF maps, decoded.
    Maps(maps::Maps),
    /// Tell where a flow goes, and why.
    Why(why::Why),
    /// Show the decisions for matching packets, live.
    Trace(trace::Trace),
    /// Learn from the traffic that there is how many packets a second this host can take.
    Capacity(capacity::Learn),
    /// Tell what of this host would hurt.
    Doctor(doctor::Doctor),
    /// The backend's side: take tunnels apart.
    Decap(decap::Decap),
    /// Run an application, start it anew when it is silent, and drain this node, or take its backend out, while it stays so.
    Guard(guard::Guard),
    /// Make and show the certificates by which agents know each other.
    Pki(pki::Pki),
}

/// Runs a command.
pub fn main(arguments: Arguments) -> ExitCode {
    let result = match arguments.command {
        Command::Run(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Unload(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Apply(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Bootstrap(command) => command.run(),
        Command::Witness(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Recover(command) => command.run(),
        Command::Join(command) => command.run(),
        Command::Leave(command) => command.run(),
        Command::Drain(command) => command.run(),
        Command::Undrain(command) => command.run(),
        Command::Get(command) => command.run(),
        Command::Incidents(command) => command.run(),
        Command::Maps(command) => command.run(),
        Command::Why(command) => command.run(),
        Command::Trace(command) => command.run(),
        Command::Capacity(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Decap(command) => command.run(),
        Command::Guard(command) => command.run(),
        Command::Pki(command) => command.run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("redirector: {error:#}");
            ExitCode::FAILURE
        }
    }
}
