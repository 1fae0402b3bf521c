//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{ConfigError, Settings, Sources};
use crate::data_dir::DataDir;
use crate::failure::{self, Exit, Failure};
use crate::telemetry::{self, Telemetry};

mod answer;
mod answerer;
mod ask;
mod backends;
mod bench;
mod cancel;
mod chat;
mod config;
mod db;
mod detect;
mod doctor;
mod events;
mod keys;
mod membership;
mod mesh;
mod models;
mod output;
mod peers;
mod ping;
mod reach;
mod result;
mod route;
mod scope;
mod screen;
mod service;
mod sharing;
mod status;
mod submit;
mod swarm;
mod tasks;
mod up;

/// What can be built in, and whether it is.
const FEATURES: [(&str, bool); 5] = [
    ("embedded", cfg!(feature = "embedded")),
    ("cuda", cfg!(feature = "cuda")),
    ("metal", cfg!(feature = "metal")),
    ("rocm", cfg!(feature = "rocm")),
    ("vulkan", cfg!(feature = "vulkan")),
];

/// What `--version` prints: the version and what was built in.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    let built_in: Vec<&str> = FEATURES.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    let features = if built_in.is_empty() { "none".to_owned() } else { built_in.join(", ") };
    #[cfg(feature = "embedded")]
    return format!("{version} (features: {features}; llama.cpp {})", bombus_llama::LLAMA_CPP_VERSION);
    #[cfg(not(feature = "embedded"))]
    return format!("{version} (features: {features})");
});

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong flags or configuration, 3 model, key or file not found, 4 nothing answers now (trying again may \
help), 10 to 18 why a node is not reached (bombus doctor --help), 130 ended by Ctrl-C.";

/// One binary that turns the machines you have into one AI.
#[derive(Debug, Parser)]
#[command(name = "bombus", version = VERSION.as_str(), after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// Where keys, models and state are kept [default: $XDG_DATA_HOME/bombus] [env: BOMBUS_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    data_dir: Option<PathBuf>,
    /// Configuration, TOML or JSON [default: $XDG_CONFIG_HOME/bombus/config.toml] [env: BOMBUS_CONFIG]
    #[arg(long, global = true, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// error, warn, info, debug, trace, or directives by module [env: BOMBUS_LOG]
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Print no notices and no closing lines on stderr
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until it is told to stop
    #[command(visible_aliases = ["start", "daemon"])]
    Up(up::UpArgs),
    /// Ask a model; the running node answers, or this process where none runs
    Ask(ask::AskArgs),
    /// Talk with a model; the running node answers, or this process where none runs
    Chat(chat::ChatArgs),
    /// List, fetch, import, show, copy and remove models
    Models(models::ModelsArgs),
    /// Show the backends: how they are, how fast they are
    Backends(backends::BackendsArgs),
    /// Say which backend or node would answer for a model
    Route(route::RouteArgs),
    /// Measure how fast every backend of this machine, or with --remote every other node, runs a model
    Bench(bench::BenchArgs),
    /// Look at this machine: what it is, what it can run, what runs on it already
    Detect(detect::DetectArgs),
    /// Show the other nodes: how each is, what it can do, which models it has
    Peers(peers::PeersArgs),
    /// Show the swarm at a glance: nodes, tiers, models, load
    Swarm(swarm::SwarmArgs),
    /// Measure the round trip to another node, and say which way it takes
    Ping(ping::PingArgs),
    /// Submit work that outlives this machine: any node does it, and any node tells what came of it
    Submit(submit::SubmitArgs),
    /// Show how a task stands; without one, how this node does
    Status(status::StatusArgs),
    /// Print what came of a task
    Result(result::ResultArgs),
    /// Print what came of the tasks of a batch, one JSON object a line
    Results(result::ResultsArgs),
    /// End a task, wherever it runs
    Cancel(cancel::CancelArgs),
    /// List the tasks of the swarm, or let old ones go
    Tasks(tasks::TasksArgs),
    /// Show what happened in the swarm, and what happens
    Events(events::EventsArgs),
    /// Replicated databases: make, open, read, write, watch and share them; peers of OrbitDB can join
    #[command(subcommand)]
    Db(db::DbCommand),
    /// Take no requests of other nodes for now; those that run go on, and so does everything asked of this node
    Pause(sharing::SharingArgs),
    /// Answer for the other nodes again after a pause
    Resume(sharing::SharingArgs),
    /// Take no more requests of other nodes since this one is about to go, and tell them so
    Drain(sharing::DrainArgs),
    /// Stay after all: answer for the other nodes again after a drain
    Undrain(sharing::SharingArgs),
    /// Print a ticket with which another machine joins
    Invite(membership::InviteArgs),
    /// Join the swarm of a ticket
    Join(membership::JoinArgs),
    /// Leave the swarm; this node begins one of its own
    Leave(membership::LeaveArgs),
    /// Remove a member from the swarm, and change the swarm's key; needs the owner key
    Kick(membership::KickArgs),
    /// Change the swarm's key; needs the owner key
    Rekey(membership::RekeyArgs),
    /// Copy the owner key to a safe place, or to another machine
    #[command(subcommand)]
    Owner(membership::OwnerCommand),
    /// Have systemd run the node
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Say what is wrong here and what to do
    Doctor(doctor::DoctorArgs),
    /// Show the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match run(&global, command) {
        Ok(code) => code,
        Err(error) => failure::report(&error),
    }
}

fn run(global: &Global, command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(global, &args),
        Command::Models(args) => models::run(global, &args),
        Command::Keys(command) => keys::run(global, &command),
        Command::Doctor(args) => doctor::run(global, &args),
        Command::Ask(args) => ask::run(global, &args),
        Command::Chat(args) => chat::run(global, &args),
        Command::Backends(args) => backends::run(global, &args),
        Command::Route(args) => route::run(global, &args),
        Command::Bench(args) => bench::run(global, &args),
        Command::Detect(args) => detect::run(global, &args),
        Command::Peers(args) => peers::run(global, &args),
        Command::Swarm(args) => swarm::run(global, &args),
        Command::Ping(args) => ping::run(global, &args),
        Command::Submit(args) => submit::run(global, &args),
        Command::Status(args) => status::run(global, &args),
        Command::Result(args) => result::run(global, &args),
        Command::Results(args) => result::run_all(global, &args),
        Command::Cancel(args) => cancel::run(global, &args),
        Command::Tasks(args) => tasks::run(global, &args),
        Command::Events(args) => events::run(global, &args),
        Command::Db(command) => db::run(global, &command),
        Command::Pause(args) => sharing::pause(global, &args),
        Command::Resume(args) => sharing::resume(global, &args),
        Command::Drain(args) => sharing::drain(global, &args),
        Command::Undrain(args) => sharing::undrain(global, &args),
        Command::Invite(args) => membership::invite(global, &args),
        Command::Join(args) => membership::join(global, &args),
        Command::Leave(args) => membership::leave(global, &args),
        Command::Kick(args) => membership::kick(global, &args),
        Command::Rekey(args) => membership::rekey(global, &args),
        Command::Owner(command) => membership::owner(global, &command),
        Command::Service(command) => service::run(global, &command),
        Command::Config(command) => config::run(global, &command),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "bombus", &mut script);
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// A flag of one command that sets a value of the configuration: the flag, the key, and the value if it was given.
pub(crate) type Setting<'a> = (&'static str, &'static str, Option<&'a str>);

impl Global {
    /// Reads the configuration and prints what there is to remark about it.
    pub(crate) fn settings(&self, flags: &[Setting<'_>]) -> Result<Settings> {
        let settings = self.load_settings(flags)?;
        for notice in &settings.notices {
            self.notice(&format!("note: {notice}"));
        }
        Ok(settings)
    }

    /// Reads the configuration.
    pub(crate) fn load_settings(&self, flags: &[Setting<'_>]) -> Result<Settings, ConfigError> {
        let shared = [("--log-level", "log.level", self.log_level.as_deref())];
        let flags = flags.iter().chain(&shared);
        let flags = flags.filter_map(|(flag, key, value)| Some((*flag, *key, (*value)?.to_owned()))).collect();
        Settings::load(&Sources::of_process(self.config_file().0, flags))
    }

    /// Returns the configuration file that was asked for, and by what.
    pub(crate) fn config_file(&self) -> (Option<PathBuf>, &'static str) {
        chosen_path(self.config.as_ref(), "flag --config", "BOMBUS_CONFIG", "environment BOMBUS_CONFIG")
    }

    /// Returns the path of the data directory, and what chose it.
    pub(crate) fn data_dir_path(&self) -> Result<(PathBuf, &'static str)> {
        use etcetera::BaseStrategy;
        let chosen =
            chosen_path(self.data_dir.as_ref(), "flag --data-dir", "BOMBUS_DATA_DIR", "environment BOMBUS_DATA_DIR");
        if let (Some(path), origin) = chosen {
            return Ok((path, origin));
        }
        let dirs = etcetera::choose_base_strategy().map_err(|error| {
            Failure::new(Exit::Usage, format!("there is no place for the data directory: {error}"))
                .hint("name one: --data-dir DIR or BOMBUS_DATA_DIR")
        })?;
        Ok((dirs.data_dir().join("bombus"), "default"))
    }

    /// Opens the data directory, making it at the first use.
    pub(crate) fn data_dir(&self) -> Result<DataDir> {
        Ok(DataDir::open(&self.data_dir_path()?.0)?)
    }

    /// Begins logging for a command that ends by itself: warnings that it does not tell in its own words, unless a level was asked for.
    pub(crate) fn begin_quiet_logs(&self, settings: &Settings) -> Result<Telemetry> {
        let log = &settings.config.log;
        if settings.is_set("log.level") { telemetry::begin(log, &log.level) } else { telemetry::begin_quiet(log) }
    }

    /// Says something to the person at the terminal.
    pub(crate) fn notice(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

fn chosen_path(
    flag: Option<&PathBuf>,
    flag_origin: &'static str,
    variable: &str,
    variable_origin: &'static str,
) -> (Option<PathBuf>, &'static str) {
    if let Some(path) = flag {
        return (Some(path.clone()), flag_origin);
    }
    match std::env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(path) => (Some(path.into()), variable_origin),
        None => (None, "default"),
    }
}

/// Runs a command's asynchronous part. Commands other than `up` do little at once, so one thread is enough.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime cannot start")?;
    runtime.block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
