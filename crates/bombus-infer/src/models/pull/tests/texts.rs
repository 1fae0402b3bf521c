//! What a name in a registry adds to its weights.

use std::fs;

use bombus_core::chat::{ChatRequest, Message, Prompt, Role};
use bombus_core::model::ModelName;
use bombus_testkit::gguf::{GgufBuilder, Storage, tiny_model};
use bombus_testkit::origin::{Fault, Resource};
use bombus_testkit::registry::{Registry, manifest};
use bombus_testkit::sha256;
use serde_json::{Value, json};

use super::Place;
use crate::models::pull::PullError;

const TEXTS: [(&str, &str); 6] = [
    ("template", "{{ .System }} {{ .Prompt }}"),
    ("system", "Be brief."),
    ("params", r#"{"temperature": 0.25, "stop": ["END"]}"#),
    ("license", "First."),
    ("license", "Second."),
    ("messages", r#"[{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]"#),
];

/// Weights that have no template of their own.
fn bare_weights() -> Vec<u8> {
    let header = GgufBuilder::new().text("general.architecture", "llama").text("general.name", "Bare");
    header.tensor("token_embd.weight", &[500], Storage::F32).build()
}

#[tokio::test]
async fn a_name_brings_its_texts_along() {
    let registry = Registry::start().await.unwrap();
    registry.put_with_texts("someone/assistant", "latest", &bare_weights(), &TEXTS);
    registry.put_text("someone/assistant", "Be brief.", Resource::of("Be brief.").then([Fault::Status(503)]));
    let place = Place::at_registry(&registry);
    let model = place.pull("someone/assistant").await.unwrap();
    assert_eq!(model.template(), Some("{{ .System }} {{ .Prompt }}"));
    assert_eq!(model.defaults.licenses, ["First.", "Second."]);

    let mut request = ChatRequest::new("m", Prompt::Chat(vec![Message::text(Role::User, "3")]));
    model.defaults.apply(&mut request);
    let Prompt::Chat(messages) = &request.prompt else { panic!("no conversation") };
    let texts: Vec<String> = messages.iter().map(Message::joined_text).collect();
    assert_eq!(texts, ["Be brief.", "1", "2", "3"]);
    assert_eq!((request.sampling.temperature, request.stop), (Some(0.25), vec!["END".to_owned()]));

    let copy = place.store.copy(&model.name, &ModelName::parse("mine").unwrap()).unwrap();
    assert_eq!(copy.defaults, model.defaults);
    assert_eq!(place.pull("someone/assistant").await.unwrap(), model);
    assert_eq!(registry.storage.requests().len(), 1, "the weights come once");
}

#[tokio::test]
async fn weights_with_a_template_keep_their_own() {
    let registry = Registry::start().await.unwrap();
    registry.put_with_texts("library/m", "latest", &tiny_model("m", 1_000), &TEXTS);
    let model = Place::at_registry(&registry).pull("m").await.unwrap();
    assert!(model.template().is_some_and(|template| template.starts_with("{% for")), "{:?}", model.template());
    assert_eq!(model.defaults.template, None);
    assert_eq!(model.defaults.system.as_deref(), Some("Be brief."));
}

#[tokio::test]
async fn a_model_that_came_without_its_texts_works_and_gets_them_by_another_pull() {
    let registry = Registry::start().await.unwrap();
    registry.put_with_texts("library/m", "latest", &bare_weights(), &TEXTS);
    let place = Place::at_registry(&registry);
    let model = place.pull("m").await.unwrap();
    let path = place.files_in("manifests").remove(0);
    let mut kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    kept.as_object_mut().unwrap().remove("defaults").unwrap();
    fs::write(&path, kept.to_string()).unwrap();

    let without = place.store.get(&model.name).unwrap().unwrap();
    assert_eq!((without.template(), &without.path), (None, &model.path));
    assert_eq!(place.pull("m").await.unwrap().defaults, model.defaults);
    assert_eq!(place.store.get(&model.name).unwrap().unwrap().defaults, model.defaults);
    assert_eq!(registry.storage.requests().len(), 1, "the weights were here");
}

#[tokio::test]
async fn a_text_that_is_not_what_the_manifest_says_stops_the_pull() {
    let registry = Registry::start().await.unwrap();
    let place = Place::at_registry(&registry);
    registry.put_with_texts("library/changed", "latest", &bare_weights(), &TEXTS);
    registry.put_text("library/changed", "Be brief.", Resource::of("Be evil."));
    let error = place.pull("changed").await.unwrap_err();
    let PullError::WrongHash { what, expected, found } = &error else { panic!("{error:?}") };
    assert!(what.contains("system layer"), "{error}");
    assert_eq!([expected, found], [&sha256(b"Be brief."), &sha256(b"Be evil.")]);

    registry.put_with_texts("library/lost", "latest", &bare_weights(), &TEXTS);
    registry.put_text("library/lost", "Be brief.", Resource::of("").always(Fault::Status(404)));
    let error = place.pull("lost").await.unwrap_err();
    assert!(matches!(error, PullError::Refused { status: 404, .. }), "{error:?}");

    let long = "l".repeat((1 << 20) + 1);
    registry.put_with_texts("library/long", "latest", &bare_weights(), &[("system", long.as_str())]);
    let mut sent_long = manifest(&sha256(&bare_weights()), bare_weights().len());
    sent_long["layers"][1]["digest"] = format!("sha256:{}", sha256(long.as_bytes())).into();
    registry.put_manifest("library/sent-long", "latest", &sent_long);
    registry.put_text("library/sent-long", &long, Resource::of(long.as_str()));
    let mut evil = manifest(&sha256(&bare_weights()), bare_weights().len());
    evil["layers"][1]["digest"] = "sha256:../../manifests/latest".into();
    registry.put_manifest("library/evil", "latest", &evil);
    let half = "h".repeat(1 << 19);
    let licenses: Vec<String> = (0..9).map(|number| format!("{number}{half}")).collect();
    let licenses: Vec<(&str, &str)> = licenses.iter().map(|text| ("license", text.as_str())).collect();
    registry.put_with_texts("library/heavy", "latest", &bare_weights(), &licenses);
    registry.put_with_texts("library/many", "latest", &bare_weights(), &[("license", "Again."); 65]);
    let mut binary = manifest(&sha256(&bare_weights()), bare_weights().len());
    binary["layers"][1] = json!({
        "mediaType": "application/vnd.ollama.image.system",
        "digest": format!("sha256:{}", sha256(&[0xFF])),
        "size": 1,
    });
    registry.put_manifest("library/binary", "latest", &binary);
    registry.site.put(&format!("/v2/library/binary/blobs/sha256:{}", sha256(&[0xFF])), Resource::of([0xFF_u8]));
    for (model, words) in [
        ("long", "system layer has 1048577 bytes"),
        ("sent-long", "longer than 1048576 bytes"),
        ("evil", "template layer is not a SHA-256"),
        ("heavy", "bytes together"),
        ("many", "65 layers of text"),
        ("binary", "no text in UTF-8"),
    ] {
        let error = place.pull(model).await.unwrap_err();
        assert!(matches!(error, PullError::Protocol { .. }) && error.to_string().contains(words), "{error}");
    }
    assert!(place.store.list().unwrap().is_empty() && place.files_in("blobs").is_empty());
    assert!(registry.storage.requests().is_empty(), "the weights are fetched last");
}
