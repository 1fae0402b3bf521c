//! What a node does for others alone with what it shares.

use bombus_core::chat::EmbedInput;
use bombus_core::tasks::WholeRequest;

use super::*;

/// Asks for everything that a model does, by one name.
fn everything(model: &str) -> [Submission; 4] {
    let chat = ChatRequest::new(model, Prompt::Raw("some words".to_owned()));
    let vectors = EmbedRequest::new(model, vec![EmbedInput::Text("some words".to_owned())]);
    let whole_chat = WholeRequest::Chat { requests: vec![chat], answers: 1, form: String::new() };
    let whole_vectors = WholeRequest::Embed { request: Box::new(vectors), form: String::new() };
    [
        Submission::prompt(model, "some words"),
        Submission::new(model, Work::Embedding { text: "some words".to_owned() }),
        Submission::new(model, Work::Whole(Box::new(whole_chat))),
        Submission::new(model, Work::Whole(Box::new(whole_vectors))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_model_takes_no_task_of_a_peer_by_the_name_of_a_shared_one() {
    let (shared, private) = (Model::named("shared", Mood::Refuse), Model::named("q", Mood::Echo));
    let mut first = backend("first", &shared);
    first.options.aliases.insert("q".to_owned(), "shared".to_owned());
    let backends = vec![first, backend("second", &private)];
    let share = ShareConfig { models: vec!["shared".to_owned()], ..ShareConfig::default() };
    let a = Working::start(1, &[], None).await;
    let b = Working::start_on(hasty(), 2, &[&a], backends, share, hasty_tasks(), TempDir::new().unwrap()).await;
    a.knows(&b).await;
    for submission in everything("q") {
        let id = a.tasks.submit(submission.clone()).await.unwrap().id;
        let report = a.ends(&id).await;
        let error = report.error.as_deref().unwrap_or_default();
        assert!(report.status == TaskStatus::Failed && error.contains("as the test wants"), "{report:?}");
        let own = b.tasks.submit(submission).await.unwrap().id;
        assert_eq!(b.ends(&own).await.status, TaskStatus::Completed, "what is its own it may use");
    }
    for node in [a, b] {
        node.stop().await;
    }
}
