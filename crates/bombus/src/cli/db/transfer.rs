//! `bombus db export` and `import`, and lines of JSON as the node sends them.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use clap::Args;
use futures::{Stream, StreamExt, TryStreamExt};
use reqwest::{Body, Method, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncWriteExt, BufWriter};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::{ReaderStream, StreamReader};

use super::path;
use crate::cli::{Global, output};
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;

/// Longest accepted line.
pub(super) const LINE_BYTES_MAX: usize = 64 << 20;
/// How much is read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// Arguments of `bombus db export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// Where to; a file that is there is not overwritten [default: stdout]
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Say as one JSON object how much was written to FILE; the rows themselves are lines of JSON in any case
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The database that takes the rows: its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// What `bombus db export` wrote [default: stdin]
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Lines of JSON. One that says why there are no more of them is an error.
pub(super) struct Lines {
    lines: Pin<Box<dyn Stream<Item = Result<String, String>> + Send>>,
}

impl Lines {
    pub(super) fn of(response: Response) -> Self {
        let lines = FramedRead::new(
            StreamReader::new(response.bytes_stream().map_err(io::Error::other)),
            LinesCodec::new_with_max_length(LINE_BYTES_MAX),
        );
        Self { lines: lines.map_err(|error| error.to_string()).boxed() }
    }

    pub(super) async fn next(&mut self) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Broken {
            error: String,
        }
        let Some(line) = self.lines.next().await else { return Ok(None) };
        let failed = |reason: &str| Failure::new(Exit::Unavailable, format!("the answer broke off: {reason}"));
        let line = line.map_err(|reason| failed(&reason))?;
        // Rows have no such field beside their value.
        match serde_json::from_str::<Broken>(&line) {
            Ok(broken) => Err(failed(&broken.error).into()),
            Err(_) => Ok(Some(line)),
        }
    }
}

pub(super) async fn export(global: &Global, node: &NodeClient, args: &ExportArgs) -> Result<()> {
    let response = node.send(Method::GET, &path(&args.database, "/export"), None).await?;
    let mut lines = Lines::of(response);
    let Some(file) = &args.file else {
        while let Some(line) = lines.next().await? {
            if !output::print_piece(&(line + "\n"))? {
                break;
            }
        }
        return Ok(());
    };
    match write(&mut lines, file).await {
        Ok(rows) if args.json => output::print_json(&json!({ "exported": rows, "file": file })),
        Ok(rows) => {
            global.notice(&format!("{rows} rows are in {}", file.display()));
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Writes a file, which is there only if it is whole.
async fn write(lines: &mut Lines, file: &Path) -> Result<u64> {
    if tokio::fs::try_exists(file).await.unwrap_or(true) {
        let failure = Failure::new(Exit::Usage, format!("{} is there already", file.display()));
        return Err(failure.hint("name another file, or remove that one").into());
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = || format!("{} cannot be written", file.display());
    let draft = tempfile::Builder::new().prefix(".bombus-export-").tempfile_in(folder).with_context(failed)?;
    let mut target = BufWriter::new(File::from_std(draft.reopen().with_context(failed)?));
    let mut written = 0_u64;
    while let Some(line) = lines.next().await? {
        target.write_all((line + "\n").as_bytes()).await.with_context(failed)?;
        written += 1;
    }
    target.flush().await.with_context(failed)?;
    target.get_ref().sync_all().await.with_context(failed)?;
    draft.persist_noclobber(file).map_err(|error| error.error).with_context(failed)?;
    // The first line says what the others are.
    Ok(written.saturating_sub(1))
}

pub(super) async fn import(node: &NodeClient, args: &ImportArgs) -> Result<()> {
    let file = args.file.as_deref().filter(|file| *file != Path::new("-"));
    let unreadable = |error: &io::Error| {
        let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Usage };
        let name = file.map_or("stdin".to_owned(), |file| file.display().to_string());
        Failure::new(exit, format!("{name} cannot be read: {error}"))
    };
    let pieces = match file {
        Some(file) => {
            let opened = File::open(file).await.map_err(|error| unreadable(&error))?;
            ReaderStream::with_capacity(opened, PIECE_BYTES).map_ok(Vec::from).boxed()
        }
        None => stdin_pieces().boxed(),
    };
    // A body that breaks off looks like a node that does not answer.
    let trouble = Arc::new(OnceLock::new());
    let noted = trouble.clone();
    let pieces = pieces.map_err(move |error| {
        let told = io::Error::from(error.kind());
        // It is set once: the body ends there.
        let _ = noted.set(error);
        told
    });
    let answer = node.post_body(&path(&args.database, "/import"), Body::wrap_stream(pieces)).await;
    let answer: Value = answer.map_err(|error| trouble.get().map_or(error, |error| unreadable(error).into()))?;
    if args.json {
        return output::print_json(&answer);
    }
    output::print(&format!("{}\n", answer["imported"]))
}

/// Reads stdin on a thread of its own, which ends with the process: it may wait for ever for somebody who writes nothing more.
fn stdin_pieces() -> impl Stream<Item = io::Result<Vec<u8>>> + Send + 'static {
    // When nobody takes the pieces, reading waits.
    let (sender, mut receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    if sender.blocking_send(Ok(piece)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Where nobody waits for it, nobody has to be told.
                    let _ = sender.blocking_send(Err(error));
                    return;
                }
            }
        }
    });
    async_stream::stream! {
        while let Some(piece) = receiver.recv().await {
            yield piece;
        }
    }
}
