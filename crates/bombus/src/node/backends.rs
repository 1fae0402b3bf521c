use std::sync::Arc;

use anyhow::Result;
use bombus_infer::fake::FakeBackend;
use bombus_infer::{Backends, NamedBackend};

use crate::config::{BackendKind, Config};
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};

/// The configured backends, ready to be asked.
pub(crate) struct RunningBackends {
    backends: Backends,
}

impl RunningBackends {
    /// Starts every backend of the configuration. Models are loaded when they are first asked for.
    pub(crate) fn start(config: &Config, _data_dir: &DataDir) -> Result<Self> {
        let mut named = Vec::new();
        for backend in &config.backends {
            let name = backend.name.clone();
            match &backend.kind {
                BackendKind::Fake(script) => {
                    named.push(NamedBackend { name, backend: Arc::new(FakeBackend::new(script.clone())) });
                }
                BackendKind::Embedded(_) => return Err(no_engine().into()),
            }
        }
        Ok(Self { backends: Backends::new(named) })
    }

    /// Returns the backends in order of preference.
    pub(crate) fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Ends what the backends started.
    pub(crate) async fn stop(self) {}
}

fn no_engine() -> Failure {
    Failure::new(Exit::Usage, "this build of bombus has no embedded engine, and the configuration asks for one")
        .hint("build it with the cargo feature `embedded`, or configure other [[backends]]")
}
