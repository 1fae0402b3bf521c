use bombus_core::capability::Hardware;
use bombus_infer::models::catalogue::{self, catalogue};
use bombus_infer::models::{LocalModel, ModelStore};

use super::Check;
use crate::config::{BackendKind, Config};
use crate::data_dir::DataDir;
use crate::node::open_models;

fn store(data_dir: Option<&DataDir>) -> Option<ModelStore> {
    // Opening would make the folder.
    let data_dir = data_dir.filter(|data_dir| data_dir.models().is_dir())?;
    open_models(data_dir).ok()
}

/// Whether the stored models are whole.
pub(super) fn stored(data_dir: Option<&DataDir>) -> Vec<Check> {
    const NAME: &str = "stored models";
    let Some(store) = store(data_dir) else { return Vec::new() };
    match (store.list(), store.problems()) {
        (Ok(models), Ok(problems)) if problems.is_empty() => {
            vec![Check::ok(NAME, format!("{}, all of the right size", models.len()))]
        }
        (Ok(_), Ok(problems)) => {
            let found = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            vec![Check::fail(NAME, found, "pull the model again, or remove it: bombus models rm NAME")]
        }
        (Err(error), _) | (_, Err(error)) => {
            vec![Check::fail(NAME, error.to_string(), "correct the permissions of the data directory")]
        }
    }
}

/// Whether the default model is here.
pub(super) fn default_model(config: &Config, data_dir: Option<&DataDir>) -> Check {
    const NAME: &str = "default model";
    let name = &config.default_model;
    let scripted = config.backends.iter().any(|backend| match &backend.kind {
        BackendKind::Fake(script) => script.models.contains(name),
        _ => false,
    });
    if scripted {
        return Check::ok(NAME, format!("{name} is scripted"));
    }
    match stored_model(config, data_dir) {
        Some(model) => Check::ok(NAME, format!("{name} is here, {} bytes", model.size_bytes)),
        None if config.backends.iter().any(|backend| backend.kind.is_server()) => Check::ok(
            NAME,
            format!("{name} is not in the store; bombus route {name} says whether another backend has it"),
        ),
        None => Check::warn(
            NAME,
            format!("{name} is not here"),
            format!("bombus models pull {name}, or name another with --model or default_model"),
        ),
    }
}

fn stored_model(config: &Config, data_dir: Option<&DataDir>) -> Option<LocalModel> {
    store(data_dir)?.get(&config.default_model).ok().flatten()
}

/// A model needs about its file's size, and this much for its context and the engine.
const CONTEXT_MB: u64 = 300;

/// Whether the default model fits into memory.
pub(super) fn memory(config: &Config, data_dir: Option<&DataDir>, hardware: &Hardware) -> Check {
    const NAME: &str = "memory";
    let known = catalogue();
    let needed_mb = match catalogue::find(&known, config.default_model.as_str()) {
        Some(entry) => Some(entry.ram_mb),
        None => stored_model(config, data_dir).map(|model| (model.size_bytes >> 20) + CONTEXT_MB),
    };
    let available_mb = hardware.ram_available_mb;
    match needed_mb {
        Some(needed_mb) if needed_mb > available_mb => Check::warn(
            NAME,
            format!("{} needs about {needed_mb} MB, and {available_mb} MB are available", config.default_model),
            "end other programs, or take a smaller model",
        ),
        Some(needed_mb) => {
            Check::ok(NAME, format!("{available_mb} MB available; {} needs about {needed_mb} MB", config.default_model))
        }
        None => Check::ok(NAME, format!("{available_mb} MB available of {} MB", hardware.ram_total_mb)),
    }
}
