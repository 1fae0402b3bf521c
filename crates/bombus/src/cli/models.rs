use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bombus_core::model::ModelName;
use bombus_infer::models::catalogue::catalogue;
use bombus_infer::models::pull::{PullConfig, PullError, pull};
use bombus_infer::models::{LocalModel, StoreError};
use clap::Subcommand;
use serde_json::{Value, json};

use super::{Global, output};
use crate::failure::{Exit, Failure};
use crate::node::open_models;
use crate::platform::StopSignals;

mod progress;

use progress::Progress;

/// `bombus models`.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the models on this machine
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Fetch a model
    #[command(
        about = "Fetch a model: a name of the catalogue, hf.co/OWNER/REPO[:QUANT], or a name of Ollama's registry such as qwen3:8b"
    )]
    Pull {
        /// The model
        name: String,
    },
    /// Copy a GGUF file into the store
    Import {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
        /// What to call it [default: the file's name]
        #[arg(long, value_parser = ModelName::parse)]
        name: Option<ModelName>,
    },
    /// Remove a model
    Rm {
        /// The model
        #[arg(value_parser = ModelName::parse)]
        name: ModelName,
    },
    /// List the models that can be pulled by a short name
    Catalogue {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(global: &Global, command: &ModelsCommand) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    match command {
        ModelsCommand::List { json } => list(global, *json)?,
        ModelsCommand::Pull { name } => return super::block_on(pull_model(global, name)),
        ModelsCommand::Import { file, name } => import(global, file, name.as_ref())?,
        ModelsCommand::Rm { name } => {
            open_models(&global.data_dir()?)?.remove(name).map_err(of_store)?;
            global.notice(&format!("{name} removed"));
        }
        ModelsCommand::Catalogue { json } => show_catalogue(*json)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(global: &Global, as_json: bool) -> Result<()> {
    let store = open_models(&global.data_dir()?)?;
    let models = store.list()?;
    for problem in store.problems()? {
        global.notice(&format!("note: {problem}"));
    }
    if as_json {
        return output::print_json(&models.iter().map(describe).collect::<Vec<_>>());
    }
    if models.is_empty() {
        global.notice("no models here; bombus models catalogue shows what can be pulled");
    }
    let rows = models.iter().map(|model| {
        let info = model.to_model_info();
        [
            model.name.to_string(),
            output::size(model.size_bytes),
            info.family.unwrap_or_else(|| "-".to_owned()),
            info.quantization.unwrap_or_else(|| "-".to_owned()),
            info.context_tokens.map_or_else(|| "-".to_owned(), |tokens| tokens.to_string()),
            output::date(model.modified_unix_s),
            model.source.to_string(),
        ]
    });
    output::print(&output::table(["NAME", "SIZE", "FAMILY", "QUANT", "CONTEXT", "SINCE", "FROM"], rows))
}

fn describe(model: &LocalModel) -> Value {
    let mut description = json!(model.to_model_info());
    description["path"] = json!(model.path);
    description["source"] = json!(model.source);
    description
}

async fn pull_model(global: &Global, name: &str) -> Result<ExitCode> {
    let store = open_models(&global.data_dir()?)?;
    let mut signals = StopSignals::listen()?;
    let mut progress = Progress::new(name, global.quiet);
    let sources = PullConfig::from_env();
    let pulled = tokio::select! {
        pulled = pull(&store, &sources, name, |step| progress.pull(step)) => Some(pulled),
        _ = signals.next() => None,
    };
    progress.end();
    match pulled {
        Some(model) => {
            arrived(&model.map_err(of_pull)?)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let goes_on = bombus_infer::models::pull::goes_on_later(&store, &sources, name);
            global.notice(if goes_on {
                "stopped; pulling again goes on from what came so far"
            } else {
                "stopped; nothing of it is kept"
            });
            Ok(Exit::Interrupted.into())
        }
    }
}

fn import(global: &Global, file: &Path, name: Option<&ModelName>) -> Result<()> {
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
    arrived(&imported.map_err(of_store)?)
}

/// `Dir/My-Model.Q4_K_M.gguf` becomes `my-model.q4_k_m`.
fn name_of_file(file: &Path) -> Result<ModelName> {
    let stem = file.file_stem().context("the file has no name")?.to_string_lossy().to_lowercase();
    ModelName::parse(&stem)
        .map_err(|error| Failure::new(Exit::Usage, error.to_string()).hint("give it a name: --name NAME").into())
}

/// Prints what scripts may want to know of a model that has come.
fn arrived(model: &LocalModel) -> Result<()> {
    output::print(&format!("{}  {}  sha256:{}\n", model.name, output::size(model.size_bytes), model.sha256))
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
        PullError::NotFound { .. } => Failure::new(Exit::NotFound, message)
            .hint("bombus models catalogue lists short names; hf.co/OWNER/REPO[:QUANT] names a model on Hugging Face")
            .into(),
        PullError::Network { .. } => Failure::new(Exit::Unavailable, message)
            .hint("check the network and the proxy settings (HTTPS_PROXY), then run the same command again")
            .into(),
        PullError::Store(error) => of_store(error),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_its_model_a_name() {
        let name = name_of_file(Path::new("/a/My-Model.Q4_K_M.gguf")).unwrap();
        assert_eq!(name, ModelName::parse("my-model.q4_k_m").unwrap());
        assert!(name_of_file(Path::new("/a/my model.gguf")).is_err());
    }
}
