//! What other nodes may have of the store.

use std::fs::File;
use std::io;

use bombus_core::model::ModelName;

use super::super::local::{LocalModel, ModelSource};
use super::super::peers::SharedModel;
use super::{ModelStore, StoreError, is_sha256};
use crate::platform::read_exact_at;

/// Weights that are read for another node.
#[derive(Debug)]
pub struct OpenWeights {
    file: File,
    /// Its size in bytes.
    pub size_bytes: u64,
}

impl OpenWeights {
    /// Fills a buffer from a place of the file. Blocks.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::UnexpectedEof`] where the file ends before; any other error of reading.
    pub fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        read_exact_at(&self.file, buffer, at)
    }
}

impl ModelStore {
    /// Describes a model for other nodes, those of an Ollama on this machine included where their weights can be read.
    ///
    /// # Errors
    ///
    /// As [`ModelStore::get`].
    pub fn shared(&self, name: &ModelName) -> Result<Option<SharedModel>, StoreError> {
        Ok(self.get(name)?.filter(readable).map(|model| self.describe(model)))
    }

    /// Describes the models whose weights have this SHA-256, for other nodes.
    ///
    /// # Errors
    ///
    /// As [`ModelStore::list`].
    pub fn shared_weights(&self, sha256: &str) -> Result<Vec<SharedModel>, StoreError> {
        if !is_sha256(sha256) {
            return Ok(Vec::new());
        }
        let models = self.list()?.into_iter().filter(|model| model.sha256 == sha256 && readable(model));
        Ok(models.map(|model| self.describe(model)).collect())
    }

    /// Opens weights by their SHA-256, this store's or those of an Ollama on this machine; `None` where they are not here whole, or may
    /// not be read.
    ///
    /// # Errors
    ///
    /// As [`ModelStore::list`].
    pub fn open_weights(&self, sha256: &str) -> Result<Option<OpenWeights>, StoreError> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        let models = self.list()?.into_iter().filter(|model| model.sha256 == sha256);
        let open = |model: LocalModel| {
            let file = File::open(&model.path).ok()?;
            let size_bytes = file.metadata().ok()?.len();
            (size_bytes == model.size_bytes).then_some(OpenWeights { file, size_bytes })
        };
        Ok(models.into_iter().find_map(open))
    }

    fn describe(&self, model: LocalModel) -> SharedModel {
        let go_template = match model.source {
            ModelSource::Ollama => self.0.ollama.go_template(&model.name),
            _ => None,
        };
        let LocalModel { name, sha256, size_bytes, defaults, .. } = model;
        SharedModel { name, sha256, size_bytes, defaults, go_template }
    }
}

/// Says whether the weights can be read: those of an Ollama may belong to somebody else.
fn readable(model: &LocalModel) -> bool {
    File::open(&model.path).is_ok()
}
