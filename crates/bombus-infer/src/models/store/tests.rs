use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bombus_core::model::{ModelCapability, ModelName};
use bombus_testkit::gguf::{GgufBuilder, tiny_model};
use bombus_testkit::registry::lay_into_ollama_directory;
use bombus_testkit::sha256;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{LocalModel, ModelSource, ModelStore, StoreError};
use crate::CreateRequest;
use crate::gguf::GgufError;

/// A store in a directory of its own, and one for files outside of it.
struct Place {
    outside: TempDir,
    _directory: TempDir,
    store: ModelStore,
}

impl Place {
    fn new() -> Self {
        Self::with_ollama(Vec::new())
    }

    fn with_ollama(ollama: Vec<PathBuf>) -> Self {
        let directory = TempDir::new().unwrap();
        let store = ModelStore::open_with_ollama(directory.path().join("models"), ollama).unwrap();
        Self { outside: TempDir::new().unwrap(), _directory: directory, store }
    }

    fn file(&self, contents: &[u8]) -> PathBuf {
        let path = self.outside.path().join("model.gguf");
        fs::write(&path, contents).unwrap();
        path
    }

    fn import(&self, model: &str, contents: &[u8]) -> Result<LocalModel, StoreError> {
        self.store.import(&self.file(contents), &name(model), |_, _| {})
    }

    fn files_in(&self, part: &str) -> Vec<PathBuf> {
        fs::read_dir(self.store.directory().join(part)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn names(store: &ModelStore) -> Vec<String> {
    store.list().unwrap().iter().map(|model| model.name.to_string()).collect()
}

#[test]
fn an_imported_model_is_listed_by_another_process_and_survives_its_original() {
    let place = Place::new();
    let contents = tiny_model("Tiny", 3_000_000);
    let mut progress = Vec::new();
    let path = place.file(&contents);
    let imported = place.store.import(&path, &name("mine"), |done, total| progress.push((done, total))).unwrap();
    fs::remove_file(path).unwrap();
    assert_eq!(progress.last(), Some(&(contents.len() as u64, contents.len() as u64)));
    assert!(progress.len() > 1);

    let other = ModelStore::open(place.store.directory()).unwrap();
    assert_eq!(other.list().unwrap(), std::slice::from_ref(&imported));
    assert_eq!(other.get(&name("mine:latest")).unwrap(), Some(imported.clone()));
    assert_eq!((imported.sha256, fs::read(imported.path).unwrap()), (sha256(&contents), contents));
    assert!(place.files_in("staging").is_empty());
}

#[test]
fn what_a_store_says_of_a_model_is_what_its_header_says() {
    let place = Place::new();
    let info = place.import("mine", &tiny_model("Tiny", 4_000)).unwrap().to_model_info();
    assert_eq!(info.family.as_deref(), Some("llama"));
    assert_eq!((info.parameters, info.context_tokens), (Some(1_000), Some(2_048)));
    assert_eq!(info.quantization.as_deref(), Some("Q4_K_M"));
}

#[test]
fn weights_stay_until_their_last_name_is_removed() {
    let place = Place::new();
    let contents = tiny_model("Tiny", 100);
    let weights = place.import("one", &contents).unwrap().path;
    place.import("two", &contents).unwrap();
    assert_eq!(place.files_in("blobs"), std::slice::from_ref(&weights));
    place.store.remove(&name("one")).unwrap();
    assert!(weights.exists());
    place.store.remove(&name("two")).unwrap();
    assert!(!weights.exists());
    assert!(matches!(place.store.remove(&name("two")), Err(StoreError::NotFound { .. })));
}

#[test]
fn a_name_moves_to_the_model_imported_last() {
    let place = Place::new();
    place.import("m", &tiny_model("One", 100)).unwrap();
    let second = place.import("m", &tiny_model("Two", 100)).unwrap();
    assert_eq!(place.store.list().unwrap(), [second]);
}

#[test]
fn names_that_differ_in_case_or_signs_are_different_models() {
    let place = Place::new();
    for (model, contents) in [("a/b:c", "1"), ("a-b:c", "2"), ("A/b:c", "3")] {
        place.import(model, &tiny_model(contents, 100)).unwrap();
    }
    assert_eq!(names(&place.store), ["A/b:c", "a-b:c", "a/b:c"]);
}

#[test]
fn files_that_are_no_whole_model_are_refused_and_leave_nothing() {
    let place = Place::new();
    let whole = tiny_model("Tiny", 1_024);
    let refused = |contents: &[u8]| match place.import("m", contents) {
        Err(StoreError::Unusable { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(&whole[..whole.len() - 1]), GgufError::Truncated { .. }));
    assert!(matches!(refused(b"<html>"), GgufError::NotGguf { .. }));
    let part = GgufBuilder::llama("Part").number("split.count", 3).build();
    assert!(matches!(place.import("m", &part), Err(StoreError::Split { parts: 3, .. })));
    let missing = place.store.import(Path::new("/nowhere.gguf"), &name("m"), |_, _| {});
    assert!(missing.unwrap_err().to_string().contains("/nowhere.gguf"));
    assert!(place.files_in("blobs").is_empty() && place.files_in("staging").is_empty());
}

#[test]
fn a_manifest_of_a_later_version_is_refused_and_the_others_still_work() {
    let place = Place::new();
    place.import("new", &tiny_model("New", 100)).unwrap();
    let manifest = place.files_in("manifests").remove(0);
    place.import("old", &tiny_model("Old", 100)).unwrap();
    let later = fs::read_to_string(&manifest).unwrap().replacen("\"format\": 2", "\"format\": 3", 1);
    fs::write(&manifest, later).unwrap();
    assert!(matches!(place.store.get(&name("new")), Err(StoreError::NewerFormat { found: 3, .. })));
    assert_eq!(names(&place.store), ["old:latest"]);
    assert!(matches!(place.store.problems().unwrap()[..], [StoreError::NewerFormat { .. }]));
}

#[test]
fn damage_to_the_directory_is_told_and_can_be_removed() {
    let place = Place::new();
    let model = place.import("m", &tiny_model("Tiny", 100)).unwrap();
    fs::write(&model.path, b"short").unwrap();
    assert!(matches!(place.store.get(&model.name), Err(StoreError::DamagedBlob { found_bytes: Some(5), .. })));
    fs::remove_file(&model.path).unwrap();
    assert!(matches!(place.store.get(&model.name), Err(StoreError::DamagedBlob { found_bytes: None, .. })));
    fs::write(place.files_in("manifests").remove(0), b"{").unwrap();
    assert!(matches!(place.store.problems().unwrap()[..], [StoreError::DamagedManifest { .. }]));
    assert_eq!(names(&place.store), [""; 0]);
    place.store.remove(&model.name).unwrap();
    assert!(place.files_in("manifests").is_empty());
}

#[test]
fn downloads_that_were_never_finished_are_told_of_and_deleted_in_the_end() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let place = Place::new();
    let lay = |name: &str, days: u32| {
        let path = place.store.directory().join("blobs").join(format!("sha256-{name}.partial"));
        fs::write(&path, b"begun").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - DAY * days).unwrap();
        path
    };
    let (fresh, left, forgotten) = (lay("a", 0), lay("b", 2), lay("c", 31));
    let store = ModelStore::open(place.store.directory()).unwrap();
    assert!(fresh.exists() && left.exists() && !forgotten.exists());
    let problems = store.problems().unwrap();
    assert!(matches!(&problems[..], [StoreError::Unfinished { path, bytes: 5 }] if *path == left), "{problems:?}");
}

#[test]
fn a_model_of_an_ollama_has_one_name_however_it_is_asked_for() {
    let ollama = TempDir::new().unwrap();
    lay_into_ollama_directory(ollama.path(), "registry.ollama.ai/library/qwen3", "8b", &tiny_model("Qwen", 1_000))
        .unwrap();
    let place = Place::with_ollama(vec![ollama.path().to_owned()]);
    for asked in ["qwen3:8b", "library/qwen3:8b", "registry.ollama.ai/library/qwen3:8b"] {
        assert_eq!(place.store.get(&name(asked)).unwrap().unwrap().name, name("qwen3:8b"), "{asked}");
    }
}

#[test]
fn the_models_of_an_ollama_are_used_in_place_and_never_removed() {
    let ollama = TempDir::new().unwrap();
    let contents = tiny_model("Qwen", 1_000);
    let lay = |place, tag| lay_into_ollama_directory(ollama.path(), place, tag, &contents).unwrap();
    lay("registry.ollama.ai/library/qwen3", "8b");
    lay("registry.ollama.ai/someone/thing", "latest");
    lay("hf.co/owner/Repo-GGUF", "Q4_K_M");
    let place = Place::with_ollama(vec!["/nowhere".into(), ollama.path().to_owned()]);
    assert_eq!(names(&place.store), ["hf.co/owner/Repo-GGUF:Q4_K_M", "qwen3:8b", "someone/thing:latest"]);

    let model = place.store.get(&name("qwen3:8b")).unwrap().unwrap();
    assert_eq!((&model.source, model.source.to_string()), (&ModelSource::Ollama, "ollama".to_owned()));
    assert!(model.path.starts_with(ollama.path()));
    let refused = place.store.remove(&name("qwen3:8b")).unwrap_err();
    assert!(refused.to_string().contains("ollama rm"), "{refused}");
    assert!(model.path.exists());

    let own = place.import("qwen3:8b", &tiny_model("Own", 1_000)).unwrap();
    assert_eq!(place.store.get(&own.name).unwrap(), Some(own));
    place.store.remove(&name("qwen3:8b")).unwrap();
    assert_eq!(place.store.get(&name("qwen3:8b")).unwrap(), Some(model));
}

#[test]
fn a_model_that_an_ollama_is_still_fetching_is_left_out() {
    let ollama = TempDir::new().unwrap();
    let contents = tiny_model("Qwen", 1_000);
    lay_into_ollama_directory(ollama.path(), "registry.ollama.ai/library/qwen3", "8b", &contents).unwrap();
    fs::write(ollama.path().join("blobs").join(format!("sha256-{}", sha256(&contents))), &contents[..100]).unwrap();
    let place = Place::with_ollama(vec![ollama.path().to_owned()]);
    assert_eq!(names(&place.store), [""; 0]);
}

fn derived(model: &str, from: &str) -> CreateRequest {
    CreateRequest { name: model.to_owned(), from: Some(from.to_owned()), ..CreateRequest::default() }
}

fn send(store: &ModelStore, contents: &[u8]) -> String {
    let hash = sha256(contents);
    let mut incoming = store.receive(&hash).unwrap();
    contents.chunks(1_000).for_each(|piece| incoming.write(piece).unwrap());
    incoming.finish().unwrap();
    hash
}

fn age(path: &Path, days: u32) {
    let time = SystemTime::now() - Duration::from_secs(24 * 3600) * days;
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_derived_model_is_a_name_with_defaults_over_the_same_weights() {
    let place = Place::new();
    let base = place.import("base", &tiny_model("Tiny", 100)).unwrap();
    let request = CreateRequest {
        system: Some("Be brief.".into()),
        template: Some("{{ .Prompt }}".into()),
        parameters: json!({ "temperature": 0.5, "stop": ["END"] }).as_object().unwrap().clone(),
        licenses: vec!["MIT".into()],
        ..derived("mine", "base")
    };
    let mine = place.store.create(&request).unwrap();
    assert_eq!(place.store.get(&name("mine")).unwrap(), Some(mine.clone()));
    assert_eq!((&mine.path, mine.defaults.system.as_deref()), (&base.path, Some("Be brief.")));

    let child = CreateRequest {
        system: Some(String::new()),
        parameters: json!({ "temperature": 1 }).as_object().unwrap().clone(),
        licenses: vec!["Own".into()],
        ..derived("child", "mine")
    };
    let details = place.store.create(&child).unwrap().details().unwrap();
    assert_eq!((details.parent, details.system.as_str()), (Some(name("mine")), ""));
    assert_eq!(details.parameters, *json!({ "temperature": 1, "stop": ["END"] }).as_object().unwrap());
    assert_eq!(
        (details.template.as_str(), details.licenses),
        ("{{ .Prompt }}", vec!["MIT".to_owned(), "Own".to_owned()])
    );

    place.store.remove(&name("base")).unwrap();
    place.store.remove(&name("mine")).unwrap();
    assert!(base.path.exists());
    place.store.remove(&name("child")).unwrap();
    assert!(!base.path.exists());
}

#[test]
fn the_details_of_a_model_are_what_its_file_says() {
    let place = Place::new();
    let file = GgufBuilder::llama("Tiny")
        .text("general.license", "apache-2.0")
        .float("llama.attention.layer_norm_rms_epsilon", 0.00001)
        .numbers("tokenizer.ggml.token_type", &[1, 1, 3])
        .build();
    let details = place.import("m", &file).unwrap().details().unwrap();
    assert_eq!(details.licenses, ["apache-2.0"]);
    assert!(details.template.contains("message.content"));
    assert_eq!(details.metadata["general.architecture"], "llama");
    assert_eq!(details.metadata["llama.context_length"], 2048);
    assert_eq!(details.metadata["llama.attention.layer_norm_rms_epsilon"].to_string(), "0.00001");
    assert!(
        details.metadata["tokenizer.ggml.tokens"].is_null() && details.metadata["tokenizer.ggml.token_type"].is_null()
    );
}

#[test]
fn a_model_is_made_of_a_file_that_was_sent() {
    let place = Place::new();
    let contents = tiny_model("Tiny", 5_000);
    let hash = send(&place.store, &contents);
    assert!(place.store.has_blob(&hash) && !place.store.has_blob(&"0".repeat(64)));
    let files = [("model.gguf".to_owned(), format!("sha256:{hash}"))].into();
    let request = CreateRequest { name: "mine".into(), files, ..CreateRequest::default() };
    let model = place.store.create(&request).unwrap();
    assert_eq!((model.sha256, model.source, fs::read(model.path).unwrap()), (hash, ModelSource::Sent, contents));
    assert!(place.files_in("staging").is_empty());
}

#[test]
fn what_models_cannot_be_made_of_is_refused_with_a_reason() {
    let place = Place::new();
    place.import("base", &tiny_model("Tiny", 100)).unwrap();
    let mut incoming = place.store.receive(&"0".repeat(64)).unwrap();
    incoming.write(b"something else").unwrap();
    let error = incoming.finish().unwrap_err().to_string();
    assert!(error.contains("digest mismatch"), "{error}");
    assert!(place.store.receive("../x").is_err());
    let no_model = send(&place.store, b"GGML");
    let files = |hashes: &[&str]| CreateRequest {
        name: "m".into(),
        files: hashes.iter().map(|hash| (format!("{hash}.gguf"), (*hash).to_owned())).collect(),
        ..CreateRequest::default()
    };
    let adapters = [("a".to_owned(), no_model.clone())].into();
    for (request, reason) in [
        (files(&[&"1".repeat(64)]), "not found"),
        (files(&["../../x"]), "not found"),
        (files(&[&no_model]), "not a GGUF file"),
        (files(&[&no_model, &"1".repeat(64)]), "one GGUF file"),
        (files(&[]), "'from'"),
        (derived("m", "nobody"), "not found"),
        (CreateRequest { adapters, ..derived("m", "base") }, "adapters"),
        (CreateRequest { renderer: Some("qwen3-coder".into()), ..derived("m", "base") }, "RENDERER"),
        (CreateRequest { parser: Some("qwen3-coder".into()), ..derived("m", "base") }, "PARSER"),
        (CreateRequest { quantize: Some("Q8_0".into()), ..derived("m", "base") }, "Q8_0"),
        (CreateRequest { name: "../m".into(), ..derived("", "base") }, "not a model name"),
        (CreateRequest { system: Some("x".repeat(9 << 20)), ..derived("m", "base") }, "8 MiB"),
    ] {
        let error = place.store.create(&request).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} does not say {reason}");
    }
    assert_eq!(names(&place.store), ["base:latest"]);
    let same = CreateRequest { quantize: Some("q4_k_m".into()), ..derived("m", "base") };
    assert!(place.store.create(&same).is_ok());
}

#[test]
fn files_that_were_sent_for_nothing_are_deleted_after_a_day() {
    let place = Place::new();
    let [used, fresh, left, kept] = ["used", "fresh", "left", "kept"].map(|name| tiny_model(name, 100));
    let used = place.import("m", &used).unwrap().path;
    let [fresh, left, kept] = [fresh, left, kept].map(|contents| place.store.blob_path(&send(&place.store, &contents)));
    for path in [&used, &left, &kept] {
        age(path, 2);
    }
    let hash = kept.file_name().unwrap().to_str().unwrap().strip_prefix("sha256-").unwrap();
    assert!(place.store.has_blob(hash), "who asks wants to use it");
    ModelStore::open(place.store.directory()).unwrap();
    assert!(used.exists() && fresh.exists() && kept.exists() && !left.exists());
    // What a manifest that cannot be read stands for is not known.
    age(&fresh, 2);
    fs::write(place.files_in("manifests").remove(0), b"{").unwrap();
    ModelStore::open(place.store.directory()).unwrap();
    assert!(used.exists() && fresh.exists());
}

#[test]
fn models_of_an_ollama_can_be_copied_and_derived_from() {
    let ollama = TempDir::new().unwrap();
    let contents = tiny_model("Qwen", 1_000);
    lay_into_ollama_directory(ollama.path(), "registry.ollama.ai/library/qwen3", "8b", &contents).unwrap();
    let place = Place::with_ollama(vec![ollama.path().to_owned()]);
    let copy = place.store.copy(&name("qwen3:8b"), &name("mine")).unwrap();
    assert!(copy.path.starts_with(place.store.directory()));
    let child = place.store.create(&derived("child", "qwen3:8b")).unwrap();
    assert_eq!((&child.path, child.defaults.parent), (&copy.path, Some(name("qwen3:8b"))));
    fs::remove_dir_all(ollama.path().join("manifests")).unwrap();
    fs::remove_dir_all(ollama.path().join("blobs")).unwrap();
    assert_eq!(fs::read(place.store.get(&name("mine")).unwrap().unwrap().path).unwrap(), contents);
    assert!(place.files_in("staging").is_empty());
}

#[test]
fn what_an_ollama_adds_to_weights_is_known() {
    let ollama = TempDir::new().unwrap();
    let contents = tiny_model("Qwen", 1_000);
    lay_into_ollama_directory(ollama.path(), "registry.ollama.ai/library/mine", "latest", &contents).unwrap();
    let manifest = ollama.path().join("manifests/registry.ollama.ai/library/mine/latest");
    let mut parsed: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    for (kind, text) in [
        ("system", "Be brief."),
        ("params", r#"{"temperature":0.5}"#),
        ("messages", r#"[{"role":"user","content":"1"}]"#),
        ("template", "{{ .Prompt }}"),
    ] {
        let digest = sha256(text.as_bytes());
        fs::write(ollama.path().join("blobs").join(format!("sha256-{digest}")), text).unwrap();
        let layer = json!({ "mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": format!("sha256:{digest}"), "size": text.len() });
        parsed["layers"].as_array_mut().unwrap().push(layer);
    }
    fs::write(&manifest, parsed.to_string()).unwrap();
    let place = Place::with_ollama(vec![ollama.path().to_owned()]);
    let defaults = place.store.get(&name("mine")).unwrap().unwrap().defaults;
    assert_eq!((defaults.system.as_deref(), defaults.messages.len()), (Some("Be brief."), 1));
    assert_eq!(defaults.parameters["temperature"], 0.5);
    assert_eq!(defaults.template, None, "the file has a template of its own");
}

#[test]
fn manifests_of_the_first_version_are_still_read() {
    let place = Place::new();
    let file = GgufBuilder::llama("Coder").texts("tokenizer.ggml.tokens", &["<PRE>", "<SUF>", "<MID>"]).build();
    // The builder has the list twice then; only the engine would mind.
    let model = place.import("m", &file).unwrap();
    let path = place.files_in("manifests").remove(0);
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    manifest["format"] = json!(1);
    manifest["info"]["fills_in"] = json!(false);
    manifest.as_object_mut().unwrap().remove("defaults");
    fs::write(&path, manifest.to_string()).unwrap();
    assert_eq!(place.store.list().unwrap(), std::slice::from_ref(&model));
    assert!(model.capabilities().contains(&ModelCapability::Insert));
}
