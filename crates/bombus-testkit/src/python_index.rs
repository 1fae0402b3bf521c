//! A double of a Python package index (PEP 503) with wheels that carry files.

use std::io::{self, Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::origin::{Origin, Resource};
use crate::sha256;

/// The double. pip uses it with `--index-url` and [`PythonIndex::url`].
pub struct PythonIndex {
    /// The server.
    pub site: Origin,
}

impl PythonIndex {
    /// Starts an index without packages.
    ///
    /// # Errors
    ///
    /// When no port can be had.
    pub async fn start() -> io::Result<Self> {
        Ok(Self { site: Origin::start().await? })
    }

    /// Returns the URL of the index.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/simple/", self.site.url())
    }

    /// Adds a package, whose name has lower-case letters and hyphens only, with one file in its wheel. `serve` changes how the
    /// wheel is served.
    pub fn put(
        &self,
        package: &str,
        version: &str,
        member: &str,
        contents: &[u8],
        serve: impl FnOnce(Resource) -> Resource,
    ) {
        let wheel = wheel(package, version, member, contents);
        let file = format!("{}-{version}-py3-none-any.whl", package.replace('-', "_"));
        let page = format!(
            "<!DOCTYPE html><html><body><a href=\"/files/{file}#sha256={}\">{file}</a></body></html>",
            sha256(&wheel)
        );
        self.site.put(&format!("/simple/{package}/"), Resource::of(page).header("Content-Type", "text/html"));
        self.site.put(&format!("/files/{file}"), serve(Resource::of(wheel)));
    }
}

/// Builds a wheel with one file in it.
///
/// # Panics
///
/// Never: it writes to memory.
#[must_use]
pub fn wheel(package: &str, version: &str, member: &str, contents: &[u8]) -> Vec<u8> {
    let info = format!("{}-{version}.dist-info", package.replace('-', "_"));
    let metadata = format!("Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n");
    let files: [(String, &[u8]); 4] = [
        (member.to_owned(), contents),
        (format!("{info}/METADATA"), metadata.as_bytes()),
        (format!("{info}/WHEEL"), b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
        (format!("{info}/RECORD"), b""),
    ];
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, contents) in files {
        archive
            .start_file(name, options)
            .and_then(|()| Ok(archive.write_all(contents)?))
            .expect("an archive in memory takes small files");
    }
    archive.finish().expect("an archive in memory can be closed").into_inner()
}
