use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use super::{Global, output};
use crate::config::{Entry, Settings};

/// `bombus config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print every value and where it comes from
    Show {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(global: &Global, command: &ConfigCommand) -> Result<ExitCode> {
    let ConfigCommand::Show { json } = command;
    let settings = global.settings(&[])?;
    let (data_dir, origin) = global.data_dir_path()?;
    let data_dir =
        Entry { key: "data_dir".to_owned(), value: data_dir.to_string_lossy().into(), origin: origin.to_owned() };
    let text = if *json { as_json(&data_dir, &settings) } else { as_table(&data_dir, &settings) };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn all<'a>(data_dir: &'a Entry, settings: &'a Settings) -> impl Iterator<Item = &'a Entry> {
    std::iter::once(data_dir).chain(&settings.entries)
}

fn as_json(data_dir: &Entry, settings: &Settings) -> String {
    let object: serde_json::Map<_, _> = all(data_dir, settings)
        .map(|entry| (entry.key.clone(), json!({ "value": entry.value, "origin": entry.origin })))
        .collect();
    format!("{:#}\n", serde_json::Value::Object(object))
}

fn as_table(data_dir: &Entry, settings: &Settings) -> String {
    let lines: Vec<(String, &str)> = all(data_dir, settings)
        .map(|entry| {
            let value = if entry.value.is_null() { "(not set)".to_owned() } else { entry.value.to_string() };
            (format!("{} = {value}", entry.key), entry.origin.as_str())
        })
        .collect();
    // Long values push their origin out of the column instead of widening it for all.
    let width =
        lines.iter().map(|(setting, _)| setting.chars().count()).filter(|width| *width <= 48).max().unwrap_or(0);
    lines.iter().map(|(setting, origin)| format!("{setting:width$}  # {origin}\n")).collect()
}
