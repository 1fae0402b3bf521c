//! `bombus`: one binary that turns the machines you have into one AI.

use std::process::ExitCode;

mod cli;
mod config;
mod data_dir;
mod failure;
mod node;
mod node_client;
mod platform;
mod printable;
mod running;
mod telemetry;

fn main() -> ExitCode {
    // The engine's child process runs this same binary. Its stdin and stdout are its only contact, so nothing may come before.
    #[cfg(feature = "embedded")]
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "engine-worker") {
        return bombus_llama::engine_worker();
    }
    cli::main()
}
