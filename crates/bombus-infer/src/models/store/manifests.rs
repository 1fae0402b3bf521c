//! The names of the store: one small file each.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bombus_core::model::ModelName;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::defaults::ModelDefaults;
use super::super::local::{LocalModel, MANIFEST_FORMAT, Manifest, ModelSource};
use super::{Hashed, ModelStore, StoreError, is_sha256};
use crate::gguf::GgufInfo;

/// Largest manifest that is written; templates and licences have some tens of kilobytes.
const MANIFEST_BYTES_MAX: usize = 8 << 20;

impl ModelStore {
    pub(super) fn write_manifest(
        &self,
        name: &ModelName,
        hashed: &Hashed,
        source: ModelSource,
        info: GgufInfo,
        defaults: ModelDefaults,
    ) -> Result<LocalModel, StoreError> {
        let modified_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            name: name.clone(),
            sha256: hashed.sha256.clone(),
            size_bytes: hashed.bytes,
            modified_unix_s,
            source,
            info,
            defaults,
        };
        let path = self.manifest_path(name);
        let text = serde_json::to_vec_pretty(&manifest).expect("a manifest has text keys only");
        if text.len() > MANIFEST_BYTES_MAX {
            let reason = format!("the template, licences and messages of '{name}' are larger than 8 MiB together");
            return Err(StoreError::NotSupported { reason });
        }
        let mut staged = self.staging_file()?;
        staged
            .write_all(&text)
            .and_then(|()| staged.as_file().sync_all())
            .map_err(|error| self.write_error(&path, error, text.len() as u64))?;
        staged.persist(&path).map_err(|error| StoreError::io(&path)(error.error))?;
        Ok(manifest.into_model(self.blob_path(&hashed.sha256)))
    }

    /// A name's file: readable, safe on every file system, and different for names that differ in case only.
    pub(super) fn manifest_path(&self, name: &ModelName) -> PathBuf {
        let readable: String = name
            .as_str()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' })
            .take(60)
            .collect();
        let hash = hex::encode(&Sha256::digest(name.as_str())[..6]);
        self.0.directory.join("manifests").join(format!("{readable}-{hash}.json"))
    }

    pub(super) fn manifest_paths(&self) -> Result<Vec<PathBuf>, StoreError> {
        let directory = self.0.directory.join("manifests");
        let mut paths = Vec::new();
        for entry in fs::read_dir(&directory).map_err(StoreError::io(&directory))? {
            let path = entry.map_err(StoreError::io(&directory))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    pub(super) fn scan(&self) -> Result<(Vec<LocalModel>, Vec<StoreError>), StoreError> {
        let (mut models, mut problems) = (Vec::new(), Vec::new());
        for path in self.manifest_paths()? {
            match self.read_manifest(&path) {
                Ok(model) => models.push(model),
                // Removed by another process since the directory was read.
                Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(problem) => problems.push(problem),
            }
        }
        Ok((models, problems))
    }

    pub(super) fn read_manifest(&self, path: &Path) -> Result<LocalModel, StoreError> {
        let manifest = self.parse_manifest(path)?;
        let blob = self.blob_path(&manifest.sha256);
        let found_bytes = fs::metadata(&blob).ok().map(|metadata| metadata.len());
        if found_bytes != Some(manifest.size_bytes) {
            let Manifest { name, size_bytes: expected_bytes, .. } = manifest;
            return Err(StoreError::DamagedBlob { name, path: blob, found_bytes, expected_bytes });
        }
        Ok(manifest.into_model(blob))
    }

    pub(super) fn parse_manifest(&self, path: &Path) -> Result<Manifest, StoreError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let text = fs::read(path).map_err(StoreError::io(path))?;
        let damaged = |reason: String| StoreError::DamagedManifest { path: path.to_owned(), reason };
        let Format { format } = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if format > MANIFEST_FORMAT {
            return Err(StoreError::NewerFormat { path: path.to_owned(), found: format });
        }
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if !is_sha256(&manifest.sha256) {
            return Err(damaged("its sha256 is not 64 hex digits".into()));
        }
        Ok(manifest)
    }
}
