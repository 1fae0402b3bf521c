//! What goes wrong between a server and the disk.

use std::fs;
use std::process::Command;
use std::time::Duration;

use bombus_testkit::gguf::{tiny_model, with_a_flipped_bit};
use bombus_testkit::hugging_face::{HuggingFace, RepositoryFile};
use bombus_testkit::origin::{Fault, Request};
use bombus_testkit::registry::Registry;
use bombus_testkit::sha256;

use super::Place;
use crate::models::pull::{PullError, PullStage, pull};
use crate::models::{ModelStore, StoreError};

/// The double with one model, whose weights suffer these faults.
async fn registry_with(contents: &[u8], faults: &[Fault], always: Option<Fault>) -> Registry {
    let registry = Registry::start().await.unwrap();
    registry.put("library/m", "latest", contents, |blob| {
        let blob = blob.then(faults.iter().copied());
        match always {
            Some(fault) => blob.always(fault),
            None => blob,
        }
    });
    registry
}

#[tokio::test]
async fn a_cut_connection_goes_on_where_it_broke_off() {
    let contents = tiny_model("m", 4_000_000);
    let registry = registry_with(&contents, &[Fault::CutAfter(1_500_000), Fault::CutAfter(1_000_000)], None).await;
    let place = Place::at_registry(&registry);
    let model = place.pull("m").await.unwrap();
    assert_eq!(fs::read(model.path).unwrap(), contents);
    let starts: Vec<_> = registry.storage.requests().iter().map(Request::range_start).collect();
    assert_eq!(starts, [None, Some(1_500_000), Some(2_500_000)]);
}

#[tokio::test]
async fn a_later_pull_goes_on_with_what_an_earlier_one_left() {
    let contents = tiny_model("m", 4_000_000);
    let cuts = [Fault::CutAfter(3_000_000), Fault::Status(503), Fault::Status(503), Fault::Status(503)];
    let registry = registry_with(&contents, &cuts, None).await;
    let place = Place::at_registry(&registry);
    let error = place.pull("m").await.unwrap_err();
    assert!(matches!(error, PullError::Network { kept_bytes: 3_000_000, .. }), "{error:?}");
    assert_eq!(fs::read(place.partial(&contents)).unwrap(), contents[..3_000_000]);

    // A new store, as a new process has it.
    let store = ModelStore::open(place.store.directory()).unwrap();
    let mut stages = Vec::new();
    let model = pull(&store, &place.config, "m", |step| stages.push(step.stage)).await.unwrap();
    assert_eq!(fs::read(model.path).unwrap(), contents);
    assert!(stages.contains(&PullStage::Verifying));
    assert_eq!(registry.storage.requests().last().unwrap().range_start(), Some(3_000_000));
}

#[tokio::test]
async fn a_server_that_ignores_or_refuses_ranges_starts_anew() {
    for fault in [Fault::IgnoreRange, Fault::RefuseRange] {
        let contents = tiny_model("m", 2_000_000);
        let registry = registry_with(&contents, &[Fault::CutAfter(700_000), fault], None).await;
        let place = Place::at_registry(&registry);
        let model = place.pull("m").await.unwrap();
        assert_eq!(fs::read(model.path).unwrap(), contents, "{fault:?}");
    }
}

#[tokio::test]
async fn a_server_that_cuts_every_answer_short_is_given_up() {
    let contents = tiny_model("m", 2_000_000);
    // It restarts from the beginning each time, so nothing is ever gained.
    let registry = registry_with(&contents, &[Fault::CutAfter(500_000)], Some(Fault::CutAfter(0))).await;
    let error = Place::at_registry(&registry).pull("m").await.unwrap_err();
    assert!(matches!(error, PullError::Network { kept_bytes: 500_000, .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_falls_silent_is_left_and_asked_again() {
    let contents = tiny_model("m", 2_000_000);
    let registry = registry_with(&contents, &[Fault::Hang, Fault::HangAfter(600_000)], None).await;
    let mut place = Place::at_registry(&registry);
    place.config.stall_timeout = Duration::from_secs(3);
    let model = place.pull("m").await.unwrap();
    assert_eq!(fs::read(model.path).unwrap(), contents);
    assert_eq!(registry.storage.requests().last().unwrap().range_start(), Some(600_000));
}

#[tokio::test]
async fn what_has_the_wrong_hash_is_deleted() {
    let contents = tiny_model("m", 1_000_000);
    let hub = HuggingFace::start().await.unwrap();
    hub.put("a/b", vec![RepositoryFile::new("b.gguf", &contents).with_wrong_hash()]);
    let place = Place::at_hugging_face(&hub);
    let error = place.pull("hf.co/a/b").await.unwrap_err();
    let PullError::WrongHash { expected, found, .. } = error else { panic!("{error:?}") };
    assert_eq!((expected, found), ("0".repeat(64), sha256(&contents)));
    assert!(place.files_in("blobs").is_empty());
    assert!(place.store.list().unwrap().is_empty());
}

#[tokio::test]
async fn damage_that_an_earlier_pull_left_is_fetched_again() {
    let contents = tiny_model("m", 1_000_000);
    let registry = registry_with(&contents, &[], None).await;
    let place = Place::at_registry(&registry);
    fs::write(place.partial(&contents), with_a_flipped_bit(contents[..300_000].to_vec())).unwrap();
    assert_eq!(fs::read(place.pull("m").await.unwrap().path).unwrap(), contents);
    fs::remove_dir_all(place.store.directory().join("manifests")).unwrap();

    let place = Place::at_registry(&registry);
    fs::write(place.partial(&contents), [&contents[..], b"more"].concat()).unwrap();
    assert_eq!(fs::read(place.pull("m").await.unwrap().path).unwrap(), contents);
}

#[tokio::test]
async fn what_is_whole_and_no_model_is_deleted() {
    let registry = registry_with(b"a text that is no model", &[], None).await;
    let place = Place::at_registry(&registry);
    assert!(matches!(place.pull("m").await, Err(PullError::Store(StoreError::Unusable { .. }))));
    assert!(place.files_in("blobs").is_empty());
}

#[tokio::test]
async fn weights_that_the_source_has_lost_are_not_tried_again() {
    let contents = tiny_model("m", 1_000);
    let registry = registry_with(&contents, &[], Some(Fault::Status(404))).await;
    let error = Place::at_registry(&registry).pull("m").await.unwrap_err();
    assert!(matches!(error, PullError::Refused { status: 404, .. }), "{error:?}");
    assert_eq!(registry.storage.requests().len(), 1);
}

#[tokio::test]
async fn a_dropped_pull_leaves_the_lock_and_what_came() {
    let contents = tiny_model("m", 4_000_000);
    let registry = registry_with(&contents, &[Fault::HangAfter(2_500_000)], None).await;
    let place = Place::at_registry(&registry);
    let (told, mut done) = tokio::sync::watch::channel(0);
    {
        let pulling = pull(&place.store, &place.config, "m", |step| {
            told.send_replace(step.done_bytes);
        });
        tokio::select! {
            result = pulling => panic!("{result:?}"),
            _ = done.wait_for(|&bytes| bytes >= 2_500_000) => {}
        }
    }
    let model = place.pull("m").await.unwrap();
    assert_eq!(fs::read(model.path).unwrap(), contents);
    // Whole pieces are kept; the last one may still have been in memory.
    assert!(registry.storage.requests().last().unwrap().range_start() >= Some(1_000_000));
}

#[tokio::test]
async fn a_model_larger_than_the_disk_is_refused_before_it_is_fetched() {
    let registry = Registry::start().await.unwrap();
    let huge = bombus_testkit::registry::manifest(&"a".repeat(64), usize::MAX / 4);
    registry.put_manifest("library/huge", "latest", &huge);
    let error = Place::at_registry(&registry).pull("huge").await.unwrap_err();
    let PullError::Store(StoreError::DiskFull { needed_bytes, free_bytes, .. }) = &error else { panic!("{error:?}") };
    let message = error.to_string();
    assert!(message.contains(&needed_bytes.to_string()) && message.contains(&free_bytes.to_string()), "{message}");
    assert!(registry.storage.requests().is_empty());
}

/// Set in the child process that runs under a limit.
const LIMITED: &str = "BOMBUS_TEST_UNDER_A_FILE_SIZE_LIMIT";

/// A full disk needs root; a limit on the size of files does not, and fails the same write.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_is_told_and_keeps_what_came() {
    if std::env::var_os(LIMITED).is_some() {
        return pull_under_a_limit();
    }
    let test = std::env::current_exe().unwrap();
    // Exceeding the limit sends a signal that ends the process unless it is ignored. Some shells count in 512 bytes, some in 1024.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(test)
        .args(["--exact", "models::pull::tests::faults::a_disk_that_fills_up_is_told_and_keeps_what_came"])
        .env(LIMITED, "1")
        .output()
        .unwrap();
    let output_text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && output_text.contains("1 passed"), "{output_text}");
}

#[cfg(unix)]
#[tokio::main(flavor = "current_thread")]
async fn pull_under_a_limit() {
    let contents = tiny_model("m", 12_000_000);
    let registry = registry_with(&contents, &[], None).await;
    let place = Place::at_registry(&registry);
    let error = place.pull("m").await.unwrap_err();
    assert!(matches!(error, PullError::Store(StoreError::DiskFull { .. })), "{error:?}");
    let kept = fs::read(place.partial(&contents)).unwrap();
    assert!(!kept.is_empty() && contents.starts_with(&kept), "{} bytes are kept", kept.len());
}
