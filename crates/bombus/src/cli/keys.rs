use std::process::ExitCode;

use anyhow::Result;
use bombus_http::KeyStore;
use bombus_http::keys::KeyError;
use clap::Subcommand;

use super::{Global, output};
use crate::failure::{Exit, Failure};

/// `bombus keys`.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make an API key and print it; it is shown this once
    Create {
        /// What to call it
        name: String,
    },
    /// List the keys, without their secrets
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove a key; it is refused from the next request on
    Revoke {
        /// The key's name
        name: String,
    },
}

pub(super) fn run(global: &Global, command: &KeysCommand) -> Result<ExitCode> {
    let keys = KeyStore::open(global.data_dir()?.keys());
    match command {
        KeysCommand::Create { name } => {
            let key = keys.create(name).map_err(|error| failure(&error))?;
            global.notice(&format!("key {name} made; it is not shown again. Send it as: Authorization: Bearer KEY"));
            output::print(&format!("{}\n", key.secret))?;
        }
        KeysCommand::List { json: true } => output::print_json(&keys.list().map_err(|error| failure(&error))?)?,
        KeysCommand::List { json: false } => {
            let keys = keys.list().map_err(|error| failure(&error))?;
            if keys.is_empty() {
                global.notice("no API keys; bombus keys create NAME makes one");
            }
            let rows = keys.iter().map(|key| [key.name.clone(), output::date(key.created_unix_s), key.hint.clone()]);
            output::print(&output::table(["NAME", "CREATED", "KEY"], rows))?;
        }
        KeysCommand::Revoke { name } => {
            keys.revoke(name).map_err(|error| failure(&error))?;
            global.notice(&format!("key {name} revoked"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn failure(error: &KeyError) -> anyhow::Error {
    let exit = match error {
        KeyError::Unknown(_) => Exit::NotFound,
        KeyError::Exists(_) | KeyError::BadName(_) => Exit::Usage,
        KeyError::Io { .. } | KeyError::Broken { .. } | KeyError::Newer { .. } | KeyError::NoRandom(_) => Exit::Failure,
    };
    Failure::new(exit, error.to_string()).into()
}
