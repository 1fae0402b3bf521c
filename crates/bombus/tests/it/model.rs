//! The small real model, and what tests need to talk to it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::harness::{Home, Node, client, within};

/// Name of the model.
pub(crate) const MODEL: &str = "smollm2:135m";

/// Makes a home with the real model, and these lines in the table of the embedded backend.
pub(crate) async fn home_with_model(lines: &str) -> Home {
    let config = format!("[api]\nlisten = '127.0.0.1:0'\n[[backends]]\nkind = 'embedded'\nthreads = 2\n{lines}\n");
    let home = Home::new(&config);
    give_model(&home).await;
    home
}

/// Puts the real model into the store of a home.
pub(crate) async fn give_model(home: &Home) {
    link_folder(&pulled_models().await.join("models"), &home.data_dir().join("models"));
}

/// Returns a data directory with the model, pulled by the program itself and kept for the next test run.
async fn pulled_models() -> &'static Path {
    static PULLED: OnceCell<PathBuf> = OnceCell::const_new();
    PULLED
        .get_or_init(|| async {
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
            let folder = cache.unwrap_or_else(|| home().join(".cache")).join("bombus/test-models");
            std::fs::create_dir_all(&folder).unwrap();
            let mut pull = Command::new(env!("CARGO_BIN_EXE_bombus"));
            pull.args(["models", "pull", MODEL]).env("BOMBUS_DATA_DIR", &folder).stdin(Stdio::null());
            let output = tokio::time::timeout(Duration::from_secs(300), pull.output());
            let output = output.await.expect("pulling the model takes seconds").unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            folder
        })
        .await
}

fn link_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_folder(&entry.path(), &target);
        } else if std::fs::hard_link(entry.path(), &target).is_err() {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Returns the weights of the model in a home, as a file of its own that may be changed.
pub(crate) fn own_weights(home: &Home) -> PathBuf {
    let blobs = home.data_dir().join("models/blobs");
    let entries = std::fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap().path());
    let blob = entries.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let copy = blob.with_extension("copy");
    std::fs::copy(&blob, &copy).unwrap();
    std::fs::rename(&copy, &blob).unwrap();
    blob
}

/// Makes a home with the real model, and beside it a changed copy under another name.
pub(crate) async fn home_with_changed_model(lines: &str, name: &str, change: impl FnOnce(&mut [u8])) -> Home {
    let home = home_with_model(lines).await;
    let mut bytes = std::fs::read(own_weights(&home)).unwrap();
    change(&mut bytes);
    let file = home.path("changed.gguf");
    std::fs::write(&file, bytes).unwrap();
    let imported = home.run(&["models", "import", file.to_str().unwrap(), "--name", name]).await;
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    home
}

/// Returns where these bytes stand first.
pub(crate) fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// Returns the processor time that a process has used, in clock ticks.
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(11).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// Returns the process ids of what a process has started; of a node these are its engines.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of_task = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
    };
    tasks
        .map(of_task)
        .flat_map(|pids| pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// Returns a chat request with temperature 0.
pub(crate) fn chat(prompt: &str, max_tokens: u32) -> Value {
    json!({
        "model": MODEL, "messages": [{ "role": "user", "content": prompt }], "max_tokens": max_tokens, "temperature": 0,
    })
}

/// Adds members to a request.
pub(crate) fn with(mut request: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

/// Waits until something holds, looking again and again.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    within(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

impl Node {
    /// Posts a request and returns status and body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let response = within(path, client().post(self.url(path)).json(body).send()).await.unwrap();
        (response.status().as_u16(), within("the body", response.json()).await.unwrap())
    }

    /// Asks and expects an answer.
    pub(crate) async fn answer(&self, request: &Value) -> Value {
        let (status, body) = self.post("/v1/chat/completions", request).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Begins a streamed answer.
    pub(crate) async fn stream(&self, request: Value) -> Events {
        let request = with(request, &json!({ "stream": true }));
        let send = client().post(self.url("/v1/chat/completions")).json(&request).send();
        let response = within("the stream's beginning", send).await.unwrap();
        if response.status() != 200 {
            panic!("{}: {}", response.status(), response.text().await.unwrap());
        }
        Events { response, buffer: String::new() }
    }

    /// Returns the process ids of the node's engine processes.
    pub(crate) fn engines(&self) -> Vec<u32> {
        children(
            self.record()["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("a node's record has its pid"),
        )
    }

    /// Returns the node's one engine process, waiting for it where it is about to be started again.
    pub(crate) async fn engine(&self) -> u32 {
        eventually("an engine process", async || self.engines().len() == 1).await;
        self.engines()[0]
    }

    /// Returns whether a model is in memory.
    pub(crate) async fn is_warm(&self, model: &str) -> bool {
        let list: Value = self.get("/v1/models").await.json().await.unwrap();
        let models = list["data"].as_array().unwrap();
        models.iter().find(|entry| entry["id"] == model).expect("the model is listed")["meta"]["warm"]
            .as_bool()
            .unwrap()
    }
}

/// The events of a streamed answer.
pub(crate) struct Events {
    response: reqwest::Response,
    buffer: String,
}

impl Events {
    /// Returns the data of the next event; `None` at the end of the stream, orderly or not.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                let data = event.strip_prefix("data: ").map(str::to_owned);
                self.buffer = rest.to_owned();
                if data.is_some() {
                    return data;
                }
                continue;
            }
            let bytes = within("the next event", self.response.chunk()).await.ok()??;
            self.buffer.push_str(std::str::from_utf8(&bytes).expect("every piece is whole UTF-8"));
        }
    }

    /// Waits for the first piece of text.
    pub(crate) async fn first_text(&mut self) -> String {
        loop {
            let data = self.next().await.expect("the stream goes on");
            let text = text_of(&data);
            if !text.is_empty() {
                return text;
            }
        }
    }

    /// Reads to the end and returns the rest of the events.
    pub(crate) async fn rest(&mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

/// Returns the text that an event adds to the answer.
pub(crate) fn text_of(data: &str) -> String {
    let event: Value = serde_json::from_str(data).unwrap_or_default();
    event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
}
