//! What the machine looks like now, looked at again and again beside the node's work.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bombus_http::NodeSample;
use bombus_infer::hardware::Probe;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps a [`NodeSample`] fresh.
pub(crate) struct Machine {
    sample: watch::Receiver<NodeSample>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Machine {
    /// Begins to look, in the background: until the first look is over the sample is empty.
    pub(crate) fn watch(data_dir: &Path) -> Self {
        let (sender, sample) = watch::channel(NodeSample::default());
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep_looking(data_dir.to_owned(), sender, stop.clone()));
        Self { sample, stop, task }
    }

    /// Returns where the latest sample is seen.
    pub(crate) fn sample(&self) -> watch::Receiver<NodeSample> {
        self.sample.clone()
    }

    /// Stops looking.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the watch over the machine failed");
        }
    }
}

/// A look that panics is logged and leaves the sample before it; the next one comes all the same.
async fn keep_looking(data_dir: PathBuf, sender: watch::Sender<NodeSample>, stop: CancellationToken) {
    let mut probe: Option<Probe> = None;
    loop {
        let before = probe.take();
        let path = data_dir.clone();
        let looked = spawn_blocking(move || match before {
            Some(mut probe) => {
                probe.refresh();
                probe
            }
            None => Probe::new(&path),
        });
        match looked.await {
            Ok(looked) => {
                let hardware = looked.hardware().clone();
                sender.send_replace(NodeSample { hardware, cpu_usage_percent: looked.cpu_usage_percent() });
                probe = Some(looked);
            }
            Err(error) => tracing::warn!(%error, "the machine could not be looked at"),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
