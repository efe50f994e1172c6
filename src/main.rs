//! The command line.

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
enum Command {
    /// Run a stand-in model server
    Worker(forebay::worker::WorkerOptions),
}

fn main() -> ExitCode {
    let Command::Worker(options) = Command::parse();
    match forebay::worker::run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebay: {error}");
            ExitCode::FAILURE
        }
    }
}
