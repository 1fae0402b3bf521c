use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bombus_core::model::ModelName;
use bombus_infer::models::catalogue::catalogue;
use bombus_infer::models::pull::{PullConfig, PullError, goes_on_later, pull};
use bombus_infer::models::{LocalModel, StoreError};
use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;

use super::answerer::running_node;
use super::{Global, output};
use crate::config::{BackendConfig, BackendKind, Settings};
use crate::failure::{Exit, Failure};
use crate::node::open_models;
use crate::platform::{StopSignal, StopSignals};

mod change;
mod list;
mod progress;
mod remote;
mod show;

use progress::Progress;

/// Says where models can be had.
const WHERE_MODELS_ARE: &str =
    "bombus models catalogue lists short names; hf.co/OWNER/REPO[:QUANT] names a model on Hugging Face";

/// `bombus models`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    command: Option<ModelsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

/// Which models are listed, and how.
#[derive(Debug, Default, Clone, PartialEq, Eq, Args)]
struct ListArgs {
    /// As a JSON array
    #[arg(long)]
    json: bool,
    /// Only those of this machine
    #[arg(long, conflicts_with = "node")]
    local: bool,
    /// Only those of this node: its name, its id, or a beginning of either that no other has
    #[arg(long, value_name = "NODE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: Option<String>,
}

/// At which nodes models are fetched or removed, where it is not this one alone.
#[derive(Debug, Default, Clone, PartialEq, Eq, Args)]
struct WhereArgs {
    /// At this node: its name, its id, or a beginning of either that no other has; its owner has to allow it
    #[arg(long, value_name = "NODE", conflicts_with = "all", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: Option<String>,
    /// At all nodes of the swarm, this one included
    #[arg(long)]
    all: bool,
    /// What came of it as one JSON object; with --node or --all as a JSON array, an object for each node
    #[arg(long)]
    json: bool,
}

impl WhereArgs {
    /// Returns whether other nodes are meant.
    fn is_elsewhere(&self) -> bool {
        self.all || self.node.is_some()
    }
}

/// A model that has come here.
#[derive(Debug, Serialize)]
struct Arrived<'a> {
    name: &'a str,
    /// Unknown where the model shows under another name.
    size_bytes: Option<u64>,
    sha256: Option<&'a str>,
}

impl Arrived<'_> {
    /// Prints what scripts may want to know of it.
    fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            return output::print_json(self);
        }
        let size = self.size_bytes.map(|bytes| format!("  {}", output::size(bytes))).unwrap_or_default();
        let sha256 = self.sha256.map(|sha256| format!("  sha256:{sha256}")).unwrap_or_default();
        output::print(&format!("{}{size}{sha256}\n", self.name))
    }
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// List the models of all nodes and backends
    List(ListArgs),
    /// Fetch a model
    #[command(
        about = "Fetch a model, from nodes that have it or from the internet: a name of the catalogue, hf.co/OWNER/REPO[:QUANT], or a name of Ollama's registry such as qwen3:8b",
        after_help = "The running node asks the other nodes of its swarm first. Where none runs, they are not known, and the model comes from the internet."
    )]
    Pull {
        /// The model
        name: String,
        #[command(flatten)]
        at: WhereArgs,
    },
    /// Copy a GGUF file into the store
    Import {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// What to call it [default: the file's name]
        #[arg(long, value_parser = ModelName::parse)]
        name: Option<ModelName>,
        /// What came of it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show everything about a model
    Show {
        /// The model
        #[arg(value_parser = ModelName::parse)]
        name: ModelName,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give a model a second name
    Cp {
        /// The model
        #[arg(value_parser = ModelName::parse)]
        from: ModelName,
        /// Its second name, which is taken from the model that had it
        #[arg(value_parser = ModelName::parse)]
        to: ModelName,
        /// What came of it as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove a model
    Rm {
        /// The model
        #[arg(value_parser = ModelName::parse)]
        name: ModelName,
        #[command(flatten)]
        at: WhereArgs,
    },
    /// List the models that can be pulled by a short name
    Catalogue {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(global: &Global, args: &ModelsArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let Some(command) = &args.command else {
        super::block_on(list::list(global, &settings, &args.list))?;
        return Ok(ExitCode::SUCCESS);
    };
    match command {
        ModelsCommand::List(args) => super::block_on(list::list(global, &settings, args))?,
        ModelsCommand::Show { name, json } => super::block_on(show::show(global, &settings, name, *json))?,
        ModelsCommand::Cp { from, to, json } => {
            super::block_on(change::copy(global, &settings, from, to))?;
            if *json {
                output::print_json(&json!({ "name": to, "copy_of": from }))?;
            }
        }
        ModelsCommand::Pull { name, at } => {
            if at.is_elsewhere() {
                return super::block_on(remote::run(global, remote::Work::Pull, name, at));
            }
            return super::block_on(pull_model(global, &settings, name, at.json));
        }
        ModelsCommand::Import { file, name, json } => import(global, file, name.as_ref(), *json)?,
        ModelsCommand::Rm { name, at } => {
            if at.is_elsewhere() {
                return super::block_on(remote::run(global, remote::Work::Remove, name.as_str(), at));
            }
            super::block_on(change::remove(global, &settings, name))?;
            if at.json {
                output::print_json(&json!({ "name": name, "removed": true }))?;
            }
        }
        ModelsCommand::Catalogue { json } => show_catalogue(*json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Fetches a model: the running node does where one of its backends can, else this process.
async fn pull_model(global: &Global, settings: &Settings, name: &str, as_json: bool) -> Result<ExitCode> {
    let data_dir = global.data_dir()?;
    let mut signals = StopSignals::listen()?;
    let node = running_node(&data_dir).await?;
    let has_node = node.is_some();
    if !has_node {
        global.notice("no node runs here, so no other node is asked: the model comes from the internet");
    }
    // Not before the notice, which would break a bar in two.
    let mut progress = Progress::new(name, global.quiet);
    if let Some(node) = node
        && let Some(kind) = change::kind_that_pulls(&node).await?
    {
        ModelName::parse(name).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        let pulled = tokio::select! {
            pulled = change::pull_at_node(&node, name, &mut progress) => Ok(pulled),
            signal = signals.next() => Err(signal),
        };
        progress.end();
        match pulled {
            Ok(pulled) => pulled?,
            Err(signal) => {
                // An Ollama keeps what came of whatever it pulls.
                let is_kept =
                    kind == "ollama" || goes_on_later(&open_models(&data_dir)?, &PullConfig::from_env(), name);
                return Ok(stopped(global, signal, is_kept));
            }
        }
        change::arrived_at_node(&node, name, as_json).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = open_models(&data_dir)?;
    let sources = PullConfig::from_env();
    let pulled = tokio::select! {
        pulled = pull(&store, &sources, name, |step| progress.pull(&step)) => Ok(pulled),
        signal = signals.next() => Err(signal),
    };
    progress.end();
    let model = match pulled {
        Ok(pulled) => pulled.map_err(of_pull)?,
        Err(signal) => return Ok(stopped(global, signal, goes_on_later(&store, &sources, name))),
    };
    let is_embedded = |backend: &BackendConfig| matches!(backend.kind, BackendKind::Embedded(_));
    // A node that could run it would have fetched it itself.
    if has_node || !settings.config.backends.iter().any(is_embedded) {
        global.notice("note: nothing here runs it: no backend of the kind embedded is configured");
    }
    arrived(&model, as_json)?;
    Ok(ExitCode::SUCCESS)
}

fn stopped(global: &Global, signal: StopSignal, goes_on: bool) -> ExitCode {
    global.notice(if goes_on {
        "stopped; pulling again goes on from what came so far"
    } else {
        "stopped; nothing of it is kept"
    });
    ExitCode::from(signal.exit_code())
}

fn import(global: &Global, file: &Path, name: Option<&ModelName>, as_json: bool) -> Result<()> {
    if !file.is_file() {
        return Err(Failure::new(Exit::NotFound, format!("{} is not a file", file.display())).into());
    }
    let name = match name {
        Some(name) => name.clone(),
        None => name_of_file(file)?,
    };
    let store = open_models(&global.data_dir()?)?;
    let mut progress = Progress::new(name.as_str(), global.quiet);
    let imported = store.import(file, &name, |done, total| progress.bytes("copying", done, Some(total)));
    progress.end();
    arrived(&imported.map_err(of_store)?, as_json)
}

/// `Dir/My-Model.Q4_K_M.gguf` becomes `my-model.q4_k_m`.
fn name_of_file(file: &Path) -> Result<ModelName> {
    let stem = file.file_stem().context("the file has no name")?.to_string_lossy().to_lowercase();
    ModelName::parse(&stem)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()).hint("give it a name: --name NAME").into())
}

fn arrived(model: &LocalModel, as_json: bool) -> Result<()> {
    let LocalModel { name, size_bytes, sha256, .. } = model;
    Arrived { name: name.as_str(), size_bytes: Some(*size_bytes), sha256: Some(sha256.as_str()) }.print(as_json)
}

fn show_catalogue(as_json: bool) -> Result<()> {
    let entries = catalogue();
    if as_json {
        return output::print_json(&entries);
    }
    let rows = entries.into_iter().map(|entry| {
        [entry.name, output::size(entry.size_bytes), format!("{} MB", entry.ram_mb), entry.license, entry.description]
    });
    output::print(&output::table(["NAME", "SIZE", "MEMORY", "LICENCE", "WHAT"], rows))
}

fn of_store(error: StoreError) -> anyhow::Error {
    match error {
        StoreError::NotFound { .. } => Failure::new(Exit::NotFound, error.to_string()).into(),
        other => other.into(),
    }
}

fn of_pull(error: PullError) -> anyhow::Error {
    let message = error.to_string();
    match error {
        PullError::Name(_) | PullError::Reference { .. } => Failure::new(Exit::Usage, message).into(),
        PullError::NotFound { .. } => Failure::new(Exit::NotFound, message).hint(WHERE_MODELS_ARE).into(),
        PullError::Network { .. } => Failure::new(Exit::Unavailable, message)
            .hint("check the network and the proxy settings (HTTPS_PROXY), then run the same command again")
            .into(),
        PullError::Store(error) => of_store(error),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        models: ModelsArgs,
    }

    fn parse(arguments: &[&str]) -> Option<ModelsArgs> {
        Command::try_parse_from([&["models"], arguments].concat()).ok().map(|command| command.models)
    }

    #[test]
    fn without_a_subcommand_models_are_listed() {
        let listed = |arguments: &[&str]| match parse(arguments)? {
            ModelsArgs { command: None, list } | ModelsArgs { command: Some(ModelsCommand::List(list)), .. } => {
                Some(list)
            }
            ModelsArgs { .. } => None,
        };
        for arguments in [&[][..], &["list"]] {
            assert_eq!(listed(arguments), Some(ListArgs::default()), "{arguments:?}");
        }
        let of_hive = ListArgs { json: true, local: false, node: Some("hive".to_owned()) };
        assert_eq!(listed(&["--node", "hive", "--json"]), Some(of_hive.clone()));
        assert_eq!(listed(&["list", "--node", "hive", "--json"]), Some(of_hive));
        assert_eq!(listed(&["--local", "--node", "hive"]), None);
        assert!(parse(&["--json", "pull", "m"]).is_none());
    }

    #[test]
    fn models_of_other_nodes_are_managed_at_one_or_at_all() {
        let at = |arguments: &[&str]| match parse(arguments)?.command? {
            ModelsCommand::Pull { at, .. } | ModelsCommand::Rm { at, .. } => Some(at),
            _ => None,
        };
        for command in ["pull", "rm"] {
            assert!(!at(&[command, "m"]).unwrap().is_elsewhere());
            assert_eq!(at(&[command, "m", "--node", "hive"]).unwrap().node.as_deref(), Some("hive"));
            assert!(at(&[command, "m", "--all", "--json"]).unwrap().json);
            let here = at(&[command, "m", "--json"]).unwrap();
            assert!(here.json && !here.is_elsewhere());
            assert_eq!(at(&[command, "m", "--all", "--node", "hive"]), None);
            assert_eq!(at(&[command, "m", "--node", ""]), None);
        }
    }

    #[test]
    fn a_file_gives_its_model_a_name() {
        let name = name_of_file(Path::new("/a/My-Model.Q4_K_M.gguf")).unwrap();
        assert_eq!(name, ModelName::parse("my-model.q4_k_m").unwrap());
        assert!(name_of_file(Path::new("/a/my model.gguf")).is_err());
    }
}
