//! `bombus doctor`: what is wrong here, and what to do.

use std::borrow::Cow;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::membership::secret;
use super::reach::Target;
use super::{Global, output};
use crate::config::{Config, Settings};
use crate::failure::Exit;
use crate::printable::one_line;

mod backends;
mod engine;
mod mesh;
mod models;
mod network;
mod storage;
mod target;

pub(super) use storage::nearest_existing;

const EXIT_CODES: &str = "\
Exit codes with an address or a ticket: 0 a node answers, 10 nothing listens, 11 another swarm's node, 12 this node's own identity, 13 a \
clock is off, 14 no answer (firewall, or off), 15 only IPv6, 16 removed or an old key, 17 another node, 18 no node.";

/// Arguments of `bombus doctor`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct DoctorArgs {
    /// Say why another node cannot be reached: its address, or a ticket; - reads a ticket from a pipe
    #[arg(value_name = "ADDRESS|TICKET")]
    target: Option<String>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but not as well or as safely as it could.
    Warn,
    /// Something does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Check {
    /// What was looked at; scripts may rely on it.
    pub(super) name: Cow<'static, str>,
    /// How it is.
    pub(super) verdict: Verdict,
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) remedy: Option<String>,
    /// A word for programs, where the finding has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) code: Option<&'static str>,
}

impl Check {
    /// All is well.
    pub(super) fn ok(name: impl Into<Cow<'static, str>>, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: Verdict::Ok, found: found.into(), remedy: None, code: None }
    }

    /// It works, but.
    pub(super) fn warn(
        name: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict: Verdict::Warn, found: found.into(), remedy: Some(remedy.into()), code: None }
    }

    /// It does not work.
    pub(super) fn fail(
        name: impl Into<Cow<'static, str>>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name: name.into(), verdict: Verdict::Fail, found: found.into(), remedy: Some(remedy.into()), code: None }
    }
}

/// The whole result.
#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    checks: Vec<Check>,
}

pub(super) fn run(global: &Global, args: &DoctorArgs) -> Result<ExitCode> {
    let (config_check, config) = configuration(global);
    let data_dir = global.data_dir_path()?.0;
    let (checks, exit) = match &args.target {
        Some(target) => {
            let target = Target::parse(&secret(target)?)?;
            super::block_on(target::examine(&config, &data_dir, &target))?
        }
        None => {
            let mut checks = vec![config_check];
            checks.extend(super::block_on(examine(&config, &data_dir))?);
            let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
            (checks, failed.then_some(Exit::Failure))
        }
    };
    let report = Report { ok: exit.is_none(), checks };
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print(&as_text(&report, output::width()))?;
    }
    Ok(exit.map_or(ExitCode::SUCCESS, ExitCode::from))
}

/// A configuration that cannot be read is a finding; the other checks go on with the defaults.
fn configuration(global: &Global) -> (Check, Config) {
    const NAME: &str = "configuration";
    match global.load_settings(&[]) {
        Ok(Settings { config, notices, .. }) if notices.is_empty() => (Check::ok(NAME, "understood"), config),
        Ok(Settings { config, notices, .. }) => {
            (Check::warn(NAME, notices.join("; "), "bombus config show prints what holds"), config)
        }
        Err(error) => {
            let remedy = "correct it; bombus config show prints every setting. The other checks use the defaults";
            (Check::fail(NAME, error.to_string(), remedy), Config::default())
        }
    }
}

async fn examine(config: &Config, root: &std::path::Path) -> Result<Vec<Check>> {
    let mut checks = vec![storage::data_dir(root)];
    let data_dir = crate::data_dir::DataDir::existing(root).ok().flatten();
    checks.extend(storage::permissions(data_dir.as_ref()));
    let node = network::node(data_dir.as_ref()).await?;
    checks.push(node.check());
    checks.push(network::port(config, &node).await?);
    checks.push(network::exposure(config, data_dir.as_ref()));
    checks.extend(mesh::checks(config, data_dir.as_ref(), &node).await);
    checks.push(engine::processor(config));
    checks.extend(backends::reachable(config).await);
    checks.extend(models::stored(data_dir.as_ref()));
    checks.push(models::default_model(config, data_dir.as_ref()));
    let hardware = bombus_infer::hardware::probe(nearest_existing(root));
    checks.push(models::memory(config, data_dir.as_ref(), &hardware));
    checks.push(storage::disk(&hardware));
    checks.push(engine::pip().await);
    Ok(checks)
}

fn as_text(report: &Report, width: usize) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let found = one_line(&format!("{}: {}", check.name, check.found));
        text.push_str(&output::wrapped(&format!("{verdict}  "), &found, width));
        if let Some(remedy) = &check.remedy {
            text.push_str(&output::wrapped("      -> ", &one_line(remedy), width));
        }
    }
    text
}
