//! New names for weights that are here: copies of models, and models with other defaults.

use std::fs;
use std::path::{Path, PathBuf};

use bombus_core::model::ModelName;
use tempfile::{Builder, TempPath};

use super::super::defaults::ModelDefaults;
use super::super::local::{LocalModel, ModelSource};
use super::{Hashed, ModelStore, StoreError, inspect, is_sha256};
use crate::CreateRequest;
use crate::gguf::GgufInfo;

/// What a new name is to stand for.
struct Origin {
    weights: Hashed,
    path: PathBuf,
    info: GgufInfo,
    source: ModelSource,
    defaults: ModelDefaults,
}

impl ModelStore {
    /// Gives a model a second name, which is taken from the model that had it. The weights stay where they are; those of an Ollama are
    /// linked into this store, or copied where the file system cannot link them.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], the errors of [`ModelStore::get`], [`StoreError::DiskFull`], [`StoreError::Io`].
    pub fn copy(&self, from: &ModelName, to: &ModelName) -> Result<LocalModel, StoreError> {
        let origin = self.origin_of(from)?;
        self.give_name(to, origin)
    }

    /// Makes a model: another one's weights and defaults under a new name, or a file that [`ModelStore::receive`] took in, with the
    /// request's defaults over those. May take long where an Ollama's weights have to be copied.
    ///
    /// # Errors
    ///
    /// [`StoreError::Name`], [`StoreError::NotFound`], [`StoreError::BlobNotFound`], [`StoreError::Unusable`],
    /// [`StoreError::Split`]; [`StoreError::NotSupported`] for adapters, a renderer or parser, several files, and another quantisation than
    /// the weights have; [`StoreError::DiskFull`], [`StoreError::Io`].
    pub fn create(&self, request: &CreateRequest) -> Result<LocalModel, StoreError> {
        let name = ModelName::parse(&request.name)?;
        Self::check_request(request)?;
        let mut origin = match &request.from {
            Some(from) => {
                let from = ModelName::parse(from)?;
                let origin = self.origin_of(&from)?;
                let source = ModelSource::Derived { from: from.to_string() };
                Origin { source, defaults: ModelDefaults { parent: Some(from), ..origin.defaults }, ..origin }
            }
            None => self.origin_of_files(request)?,
        };
        if let Some(wanted) = &request.quantize {
            check_quantization(&origin.info, wanted)?;
        }
        origin.defaults.lay_over(request);
        self.give_name(&name, origin)
    }

    /// Refuses what no model is made with here, whatever it is made of.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotSupported`].
    pub(in crate::models) fn check_request(request: &CreateRequest) -> Result<(), StoreError> {
        if !request.adapters.is_empty() {
            return refuse("adapters are not supported: merge them into the weights, and make the model of those");
        }
        if request.renderer.is_some() || request.parser.is_some() {
            return refuse("renderers and parsers are Ollama's own: without RENDERER and PARSER the template counts");
        }
        Ok(())
    }

    fn origin_of(&self, name: &ModelName) -> Result<Origin, StoreError> {
        let model = self.get(name)?.ok_or_else(|| StoreError::NotFound { name: name.clone() })?;
        let source = match model.source {
            ModelSource::Ollama => ModelSource::Derived { from: name.to_string() },
            source => source,
        };
        let weights = Hashed { sha256: model.sha256, bytes: model.size_bytes };
        Ok(Origin { weights, path: model.path, info: model.info, source, defaults: model.defaults })
    }

    fn origin_of_files(&self, request: &CreateRequest) -> Result<Origin, StoreError> {
        let mut digests = request.files.values();
        let digest = match (digests.next(), digests.next()) {
            (Some(digest), None) => digest,
            (None, _) => return refuse("a model is made of another one ('from') or of a GGUF file ('files')"),
            (Some(_), Some(_)) => {
                return refuse(
                    "a model is made of one GGUF file: convert or join the files with llama.cpp's tools first",
                );
            }
        };
        let sha256 = digest.strip_prefix("sha256:").unwrap_or(digest);
        let path = self.blob_path(sha256);
        let Some(metadata) = fs::metadata(&path).ok().filter(|_| is_sha256(sha256)) else {
            return Err(StoreError::BlobNotFound { sha256: sha256.chars().take(64).collect() });
        };
        Ok(Origin {
            info: inspect(&path)?,
            weights: Hashed { sha256: sha256.to_owned(), bytes: metadata.len() },
            path,
            source: ModelSource::Sent,
            defaults: ModelDefaults::default(),
        })
    }

    fn give_name(&self, name: &ModelName, origin: Origin) -> Result<LocalModel, StoreError> {
        let Origin { weights, path, info, source, defaults } = origin;
        let blob = self.blob_path(&weights.sha256);
        let bytes_here = || fs::metadata(&blob).ok().map(|metadata| metadata.len());
        let staged =
            if bytes_here() == Some(weights.bytes) { None } else { Some(self.bring_in(&path, weights.bytes)?) };
        let _lock = self.lock()?;
        if let Some(staged) = staged {
            staged.persist(&blob).map_err(|error| StoreError::io(&blob)(error.error))?;
        }
        if bytes_here() != Some(weights.bytes) {
            // The last name of the weights was removed just now.
            let (name, found_bytes) = (name.clone(), bytes_here());
            return Err(StoreError::DamagedBlob { name, path: blob, found_bytes, expected_bytes: weights.bytes });
        }
        self.write_manifest(name, &weights, source, info, defaults)
    }

    /// Links a file of another store, or copies it.
    fn bring_in(&self, path: &Path, bytes: u64) -> Result<TempPath, StoreError> {
        let staging = self.staging_path();
        if let Ok(linked) = Builder::new().make_in(&staging, |target| fs::hard_link(path, target)) {
            return Ok(linked.into_temp_path());
        }
        let copied = self.staging_file()?.into_temp_path();
        fs::copy(path, &copied).map_err(|error| self.write_error(path, error, bytes))?;
        Ok(copied)
    }
}

fn check_quantization(info: &GgufInfo, wanted: &str) -> Result<(), StoreError> {
    let found = info.quantization.as_deref().unwrap_or("an unknown type");
    if found.eq_ignore_ascii_case(wanted) {
        return Ok(());
    }
    refuse(&format!(
        "weights are not quantised here: these are {found}, bring them to {wanted} with `llama-quantize` first"
    ))
}

fn refuse<T>(reason: &str) -> Result<T, StoreError> {
    Err(StoreError::NotSupported { reason: reason.to_owned() })
}
