//! Development commands: `cargo xtask --help`.

use std::process::ExitCode;

use clap::Parser;
use xtask::{bench, demo, lab, setup, sim, test, traffic};

/// Development of Redirector.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Command {
    /// Install what is missing, saying what and why.
    Setup {
        /// What the machine shall be fit for.
        #[arg(long = "for", value_enum, default_value_t = setup::Purpose::Test)]
        purpose: setup::Purpose,
    },
    /// Build the BPF object alone, and print its path.
    BuildEbpf,
    /// Check everything; installs what is missing first.
    Test(test::Args),
    /// Measure: the packet path, replication, agents, failover, beside what people would use instead.
    Bench(bench::Args),
    /// Five nodes in one thread, under virtual time and faults, from seeds; a failing one tells how to replay it.
    Sim(sim::Args),
    /// A cluster in network namespaces: up, down, exec, status, fault, heal.
    Lab(lab::Args),
    /// A cluster, real requests, and where they went; sets up and builds first.
    Demo(demo::Args),
    /// What a lab's backend runs.
    #[command(hide = true)]
    Serve(traffic::ServeArgs),
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Setup { purpose } => setup::command(purpose),
        Command::BuildEbpf => test::build_ebpf(),
        Command::Test(args) => test::command(&args),
        Command::Bench(args) => bench::command(args),
        Command::Sim(args) => sim::command(&args),
        Command::Lab(args) => lab::command(args),
        Command::Demo(args) => demo::command(args),
        Command::Serve(args) => traffic::serve(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
