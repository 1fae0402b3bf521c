//! A double of Hugging Face: the API that lists a repository's files, and their contents behind a redirect to another server.

use std::io;

use serde_json::json;

use crate::origin::{Origin, Resource};
use crate::sha256;

/// The commit that every repository is at.
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The double.
pub struct HuggingFace {
    /// The site itself, which wants the token.
    pub site: Origin,
    /// Where the contents are; the token must not come here.
    pub storage: Origin,
}

/// A file of a repository.
pub struct RepositoryFile {
    path: String,
    resource: Resource,
    sha256: String,
    bytes: usize,
}

impl RepositoryFile {
    /// A file with these contents.
    #[must_use]
    pub fn new(path: &str, contents: &[u8]) -> Self {
        Self {
            path: path.to_owned(),
            resource: Resource::of(contents),
            sha256: sha256(contents),
            bytes: contents.len(),
        }
    }

    /// Lets the API tell another hash than the contents have.
    #[must_use]
    pub fn with_wrong_hash(mut self) -> Self {
        self.sha256 = "0".repeat(64);
        self
    }

    /// Changes how the contents are served, for example by a fault.
    #[must_use]
    pub fn served(mut self, change: impl FnOnce(Resource) -> Resource) -> Self {
        self.resource = change(self.resource);
        self
    }
}

impl HuggingFace {
    /// Starts the double without any repository.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        Ok(Self { site: Origin::start().await?, storage: Origin::start().await? })
    }

    /// Returns the path under which the storage has a file.
    #[must_use]
    pub fn storage_path(path: &str) -> String {
        format!("/storage/{path}")
    }

    /// Adds a repository.
    pub fn put(&self, repository: &str, files: Vec<RepositoryFile>) {
        let siblings: Vec<_> = files
            .iter()
            .map(|file| {
                json!({
                    "rfilename": file.path,
                    "size": file.bytes,
                    "blobId": &file.sha256[..40],
                    "lfs": {"sha256": file.sha256, "size": file.bytes, "pointerSize": 134},
                })
            })
            .collect();
        let answer = json!({"id": repository, "sha": COMMIT, "gated": false, "siblings": siblings});
        let target = format!("/api/models/{repository}/revision/main?blobs=true");
        self.site.put(&target, Resource::of(answer.to_string()).header("Content-Type", "application/json"));
        for file in files {
            let storage_path = Self::storage_path(&file.path);
            let location = format!("{}{storage_path}", self.storage.url());
            self.site.put(&format!("/{repository}/resolve/{COMMIT}/{}", file.path), Resource::redirect(&location));
            self.storage.put(&storage_path, file.resource);
        }
    }
}
