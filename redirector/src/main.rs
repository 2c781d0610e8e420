//! The command line: parses arguments and calls.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    redirector::cli::main(redirector::cli::Arguments::parse())
}
