//! `bombus db watch`: what happens to a database, one JSON object a line.

use std::pin::pin;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};
use reqwest::Method;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use super::path;
use super::transfer::LINE_BYTES_MAX;
use crate::cli::events::{Frame, frames};
use crate::cli::{Global, output};
use crate::failure::{Exit, Failure};
use crate::node_client::NodeClient;

pub(super) async fn run(global: &Global, node: &NodeClient, database: &str) -> Result<()> {
    let response = node.send(Method::GET, &path(database, "/watch"), None).await?;
    global.notice("watching; Ctrl-C ends it");
    let lines = FramedRead::new(
        StreamReader::new(response.bytes_stream().map_err(std::io::Error::other)),
        LinesCodec::new_with_max_length(LINE_BYTES_MAX),
    );
    let mut frames = pin!(frames(lines.map_err(|error| error.to_string())));
    while let Some(Ok(frame)) = frames.next().await {
        let Frame::Event(change) = frame else {
            let failure = Failure::new(Exit::Failure, "changes were missed: they came faster than they were read");
            return Err(failure.hint("bombus db all shows what is there now").into());
        };
        if !output::print_piece(&(change + "\n"))? {
            return Ok(());
        }
    }
    // A node that ends breaks its streams off.
    Err(Failure::new(Exit::Unavailable, "the watch ended: the node went away, or the database was closed").into())
}
