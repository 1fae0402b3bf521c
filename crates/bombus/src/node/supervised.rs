//! Work beside the node's own, which has to go on as long as the node does.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Pause before the first new start.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause: it doubles with every failure.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Work that went on for so long begins with the shortest pause again.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// A task that is started again, after a pause, whenever it ends or panics.
pub(crate) struct Supervised {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Supervised {
    /// Starts the work. `work` makes it anew for every start.
    pub(crate) fn start<W, F>(name: &'static str, work: W) -> Self
    where
        W: Fn() -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(supervise(name, work, stop.clone()));
        Self { name, stop, task }
    }

    /// Ends the work where it stands.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(task = self.name, %error, "the supervision of a task failed");
        }
    }
}

/// A task without which the node cannot go on: when it ends by itself, so does the node.
pub(crate) struct Essential {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Essential {
    /// Starts the work. It watches the token, and ends in order when it is cancelled.
    pub(crate) fn start<F>(name: &'static str, work: impl FnOnce(CancellationToken) -> F) -> Self
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(work(stop.clone()));
        Self { name, stop, task }
    }

    /// Waits until it ends though nobody stopped it, and says why. Safe to cancel; not to be asked again after an answer.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        match (&mut self.task).await {
            Ok(Ok(())) => anyhow::anyhow!("the {} ended by itself", self.name),
            Ok(Err(error)) => error,
            Err(error) => anyhow::anyhow!("the {} failed: {error}", self.name),
        }
    }

    /// Tells it to end and waits for that, but not for ever.
    pub(crate) async fn stop(self, limit: Duration) {
        self.stop.cancel();
        let Self { name, mut task, .. } = self;
        if task.is_finished() {
            return;
        }
        match tokio::time::timeout(limit, &mut task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                tracing::warn!(task = name, error = format!("{error:#}"), "a task ended with an error");
            }
            Ok(Err(error)) => tracing::error!(task = name, %error, "a task failed while it ended"),
            Err(_) => {
                tracing::warn!(task = name, limit_s = limit.as_secs(), "a task did not end in time");
                task.abort();
            }
        }
    }
}

async fn supervise<W, F>(name: &'static str, work: W, stop: CancellationToken)
where
    W: Fn() -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut pause = PAUSE_MIN;
    loop {
        let begun = Instant::now();
        // A task of its own, so that a panic ends it alone; what it is told below is the failure policy.
        let mut run = tokio::spawn(work());
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                run.abort();
                return;
            }
            ended = &mut run => report(name, ended),
        }
        if begun.elapsed() >= SETTLED_AFTER {
            pause = PAUSE_MIN;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
        }
    }
}

fn report(name: &str, ended: Result<(), JoinError>) {
    match ended {
        Ok(()) => tracing::warn!(task = name, "a task ended by itself and is started again"),
        Err(error) => tracing::error!(task = name, %error, "a task failed and is started again"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_essential_task_that_ends_says_why() {
        let mut failed = Essential::start("mesh", |_| async { anyhow::bail!("the port is taken") });
        assert_eq!(failed.ended().await.to_string(), "the port is taken");
        failed.stop(PAUSE_MAX).await;
        let mut panicked = Essential::start("mesh", |_| async { panic!("as the test wants") });
        assert!(panicked.ended().await.to_string().starts_with("the mesh failed"));
    }

    #[tokio::test]
    async fn an_essential_task_ends_in_order_or_is_cut_off() {
        let (sender, mut ended) = mpsc::channel(1);
        let orderly = Essential::start("orderly", |stop| async move {
            stop.cancelled().await;
            sender.send(()).await?;
            Ok(())
        });
        orderly.stop(PAUSE_MAX).await;
        assert_eq!(ended.recv().await, Some(()));
        let stubborn = Essential::start("stubborn", |_| std::future::pending());
        // That this returns at all is what is tested.
        stubborn.stop(Duration::from_millis(10)).await;
    }

    #[tokio::test]
    async fn what_panics_is_started_again_until_it_is_stopped() {
        let (sender, mut starts) = mpsc::channel(16);
        let supervised = Supervised::start("test", move || {
            let sender = sender.clone();
            async move {
                sender.send(Instant::now()).await.unwrap();
                panic!("as the test wants");
            }
        });
        let first = starts.recv().await.unwrap();
        let second = starts.recv().await.unwrap();
        assert!(second - first >= PAUSE_MIN, "there is a pause before it is started again");
        supervised.stop().await;
        assert!(starts.recv().await.is_none(), "nothing starts after the stop");
    }
}
