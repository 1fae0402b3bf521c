//! The rules of `ARCHITECTURE.md` about which crate may know which, checked on what cargo says.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// For each crate of the workspace, those of the workspace that it may build on.
const ALLOWED_EDGES: &[(&str, &[&str])] = &[
    ("bombus-core", &[]),
    ("bombus-infer", &["bombus-core"]),
    ("bombus-llama", &["bombus-core", "bombus-infer"]),
    ("bombus-net", &["bombus-core"]),
    ("bombus-swarm", &["bombus-core", "bombus-infer", "bombus-net", "orbitdb"]),
    ("bombus-http", &["bombus-core", "bombus-infer", "bombus-net", "bombus-swarm"]),
    (
        "bombus",
        &["bombus-core", "bombus-infer", "bombus-llama", "bombus-net", "bombus-swarm", "bombus-http", "orbitdb"],
    ),
    ("bombus-testkit", &[]),
    ("orbitdb", &[]),
];

/// Libraries that shape what is built on them, with the only crates that may name them.
const ALLOWED_USERS: &[(&str, &[&str])] = &[
    ("axum", &["bombus-http"]),
    ("hyper", &["bombus-http", "bombus-infer"]),
    ("hyper-util", &["bombus-http"]),
    ("tower", &["bombus-http"]),
    ("tower-http", &["bombus-http"]),
    ("utoipa", &["bombus-http"]),
    ("utoipa-axum", &["bombus-http"]),
    ("llama-cpp-2", &["bombus-llama"]),
    ("llama-cpp-sys-2", &["bombus-llama"]),
    ("libp2p", &["bombus-net"]),
    ("minijinja", &["bombus-llama"]),
    ("anyhow", &["bombus"]),
    ("clap", &["bombus"]),
    ("figment", &["bombus"]),
    ("console", &["bombus"]),
    ("pulldown-cmark", &["bombus"]),
    ("rustyline", &["bombus"]),
    ("tracing-subscriber", &["bombus", "bombus-llama"]),
    ("reqwest", &["bombus", "bombus-infer"]),
    ("redb", &["orbitdb"]),
    ("secp256k1", &["orbitdb"]),
];

/// Libraries that do I/O, read clocks or schedule: the pure crate names none of them.
const IMPURE: &[&str] = &[
    "anyhow",
    "async-std",
    "futures",
    "getrandom",
    "hyper",
    "reqwest",
    "rustix",
    "sysinfo",
    "tempfile",
    "time",
    "tokio",
    "tokio-util",
    "tracing",
];

/// Only tests may use these.
const DEV_ONLY: &[&str] = &["bombus-testkit", "cargo_metadata", "insta", "proptest"];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    MetadataCommand::new().manifest_path(manifest).no_deps().other_options(["--offline".to_owned()]).exec().unwrap()
}

/// Returns the names that a package needs to be built, not to be tested.
fn dependencies(package: &Package) -> BTreeSet<&str> {
    let built = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    built.map(|dependency| dependency.name.as_str()).collect()
}

#[test]
fn crates_build_only_on_those_below_them() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let members: BTreeSet<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let allowed: BTreeMap<_, _> = ALLOWED_EDGES.iter().copied().collect();
    for package in &packages {
        let name = package.name.as_str();
        let may = allowed.get(name).unwrap_or_else(|| panic!("{name} is new: say here what it may build on"));
        for dependency in dependencies(package).intersection(&members) {
            assert!(may.contains(dependency), "{name} must not build on {dependency}");
        }
    }
}

#[test]
fn heavy_libraries_stay_in_their_crates() {
    for package in metadata().workspace_packages() {
        let used = dependencies(package);
        for (library, users) in ALLOWED_USERS {
            let may = users.contains(&package.name.as_str());
            assert!(may || !used.contains(library), "{} must not name {library}; {users:?} may", package.name);
        }
    }
}

#[test]
fn the_core_is_pure() {
    let metadata = metadata();
    let core =
        metadata.workspace_packages().into_iter().find(|package| package.name.as_str() == "bombus-core").unwrap();
    let used = dependencies(core);
    let impure: Vec<_> = IMPURE.iter().filter(|library| used.contains(*library)).collect();
    assert!(impure.is_empty(), "bombus-core must not name {impure:?}");
}

#[test]
fn what_tests_need_is_in_no_build() {
    for package in metadata().workspace_packages() {
        let used = dependencies(package);
        for library in DEV_ONLY {
            // The test kit itself is such a library.
            let may = package.name.as_str() == "bombus-testkit";
            assert!(may || !used.contains(library), "{} must use {library} in tests only", package.name);
        }
    }
}
