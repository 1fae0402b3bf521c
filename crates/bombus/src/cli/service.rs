//! `bombus service`: the node as a service of systemd.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Global, output};
use crate::failure::{Exit, Failure};
use crate::platform;

mod unit;

use unit::{Scope, Unit};

/// `bombus service`.
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Have systemd start the node now and at every boot (with --system) or login
    Install {
        #[command(flatten)]
        scope: ScopeArgs,
        /// Only print the unit
        #[arg(long)]
        print: bool,
        /// How the service is then, as one JSON object
        #[arg(long, conflicts_with = "print")]
        json: bool,
        /// More arguments of `bombus up`, after `--`
        #[arg(last = true, value_name = "ARGUMENT")]
        arguments: Vec<String>,
    },
    /// Stop the service and take it away; keys, models and state stay
    Uninstall {
        #[command(flatten)]
        scope: ScopeArgs,
        /// How the service is then, as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say whether the service is there and runs
    Status {
        #[command(flatten)]
        scope: ScopeArgs,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// Whose service it is.
#[derive(Debug, Args)]
pub(crate) struct ScopeArgs {
    /// A service of the machine with a user of its own, and not of this user; needs root
    #[arg(long)]
    system: bool,
}

/// How the service is.
#[derive(Debug, Serialize)]
struct State {
    unit: PathBuf,
    installed: bool,
    /// Whether it starts by itself.
    enabled: bool,
    /// `active`, `inactive`, `failed` or what else systemd says.
    active: String,
}

pub(super) fn run(global: &Global, command: &ServiceCommand) -> Result<ExitCode> {
    match command {
        ServiceCommand::Install { scope, print, json, arguments } => {
            let unit = Unit::of(global, Scope::of(scope.system), arguments)?;
            if *print {
                output::print(&unit.text())?;
                return Ok(ExitCode::SUCCESS);
            }
            install(global, &unit)?;
            told(unit.scope, *json)
        }
        ServiceCommand::Uninstall { scope, json } => {
            let scope = Scope::of(scope.system);
            uninstall(global, scope)?;
            told(scope, *json)
        }
        ServiceCommand::Status { scope, json } => status(Scope::of(scope.system), *json),
    }
}

/// Says how the service is after a change, where a program wants to know.
fn told(scope: Scope, json: bool) -> Result<ExitCode> {
    if json {
        output::print_json(&State::of(scope)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn install(global: &Global, unit: &Unit) -> Result<()> {
    let scope = unit.scope;
    need_systemd(scope)?;
    let path = scope.unit_file()?;
    let folder = path.parent().context("a unit file has a folder")?;
    std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
    if scope == Scope::User && !unit.data_dir.exists() {
        // The service may write into it, and so it has to be there.
        platform::create_private_dir(&unit.data_dir).map_err(|error| unwritable(&unit.data_dir, &error))?;
    }
    std::fs::write(&path, unit.text()).map_err(|error| unwritable(&path, &error))?;
    global.notice(&format!("wrote {}", path.display()));
    if let Some(remarks) = verified(scope, &path) {
        global.notice(&format!("systemd-analyze verify remarks: {remarks}"));
    }
    for arguments in [&["daemon-reload"][..], &["enable", "--now", unit::NAME]] {
        systemctl(global, scope, arguments)?;
    }
    global.notice(scope.afterwards());
    Ok(())
}

fn uninstall(global: &Global, scope: Scope) -> Result<()> {
    let path = scope.unit_file()?;
    if !path.exists() {
        let message = format!("there is no service at {}", path.display());
        return Err(Failure::new(Exit::NotFound, message).hint(scope.other_hint()).into());
    }
    need_systemd(scope)?;
    systemctl(global, scope, &["disable", "--now", unit::NAME])?;
    std::fs::remove_file(&path).map_err(|error| unwritable(&path, &error))?;
    global.notice(&format!("removed {}", path.display()));
    systemctl(global, scope, &["daemon-reload"])?;
    global.notice("keys, models and state stay where they are");
    Ok(())
}

fn status(scope: Scope, json: bool) -> Result<ExitCode> {
    let state = State::of(scope)?;
    if json {
        output::print_json(&state)?;
    } else {
        output::print(&state.text(scope))?;
    }
    Ok(match (state.installed, state.active.as_str()) {
        (true, "active") => ExitCode::SUCCESS,
        (true, _) => Exit::Unavailable.into(),
        (false, _) => Exit::NotFound.into(),
    })
}

impl State {
    fn of(scope: Scope) -> Result<Self> {
        let unit = scope.unit_file()?;
        let ask = |what: &str| asked(scope, &[what, unit::NAME]).unwrap_or_else(|| "unknown".to_owned());
        let (enabled, active) = (ask("is-enabled") == "enabled", ask("is-active"));
        Ok(Self { installed: unit.exists(), enabled, active, unit })
    }

    fn text(&self, scope: Scope) -> String {
        if !self.installed {
            return format!("not installed: there is no {}; bombus service install\n", self.unit.display());
        }
        let starts = if self.enabled { "starts by itself" } else { "does not start by itself" };
        let logs = format!("journalctl {} -u {}", scope.flags().join(" "), unit::NAME);
        format!("{}, {starts}\nunit  {}\nlogs  {logs}\n", self.active, self.unit.display())
    }
}

/// Says what systemd finds wrong with a unit, where its checker is there.
fn verified(scope: Scope, path: &Path) -> Option<String> {
    let output = Command::new("systemd-analyze").args(scope.flags()).arg("verify").arg(path).output().ok()?;
    let remarks = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (!output.status.success() && !remarks.is_empty()).then_some(remarks)
}

fn need_systemd(scope: Scope) -> Result<()> {
    let running = Path::new("/run/systemd/system").is_dir();
    if !running {
        let message = "systemd does not run on this machine, so it can start no service";
        return Err(Failure::new(Exit::Failure, message)
            .hint("bombus service install --print shows the unit; elsewhere have your service manager run: bombus up")
            .into());
    }
    if scope == Scope::System && !platform::is_root() {
        let message = "a service of the machine needs root";
        return Err(Failure::new(Exit::Usage, message)
            .hint("with sudo; or without --system, for this user alone")
            .into());
    }
    Ok(())
}

/// Runs `systemctl`, and says so.
fn systemctl(global: &Global, scope: Scope, arguments: &[&str]) -> Result<()> {
    let shown = format!("systemctl {}", [scope.flags(), arguments].concat().join(" "));
    global.notice(&shown);
    let status = Command::new("systemctl").args(scope.flags()).args(arguments).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::new(Exit::Failure, format!("{shown} failed ({status})"))
            .hint(format!("journalctl {} -u {} says more", scope.flags().join(" "), unit::NAME))
            .into()),
        Err(error) => Err(Failure::new(Exit::Failure, format!("systemctl cannot be run: {error}")).into()),
    }
}

/// Asks `systemctl` for a word.
fn asked(scope: Scope, arguments: &[&str]) -> Option<String> {
    let output = Command::new("systemctl").args(scope.flags()).args(arguments).stdin(Stdio::null()).output().ok()?;
    let word = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!word.is_empty()).then_some(word)
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(Exit::Failure, format!("{} cannot be changed: {error}", path.display()));
    match error.kind() {
        ErrorKind::PermissionDenied => failure.hint("with sudo for --system; without --system for this user alone"),
        _ => failure,
    }
}
