//! What goes on beside: batches are looked after, and what is in the files of others is fetched, so that it outlives the node that took it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::NodeId;
use bombus_core::liveness::PeerState;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use orbitdb::cid::Hash;
use orbitdb::manifest::DatabaseType;
use orbitdb::{Access, Event, OpenOptions};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::FILES;
use super::drive::drive;
use super::error::FilesError;
use super::holder::{BlocksOfFiles, HOLDER, roots};
use super::read::parts_of;
use super::shared::Shared;
use super::table::{All, Table};
use super::watch::{Present, Watch};
use crate::room::leave_failed;
use crate::supervised::{PartEnded, keep_going};

/// Pause before the database is opened again that could not be.
const OPEN_PAUSE: Duration = Duration::from_secs(2);
/// How often it is looked whose batches are to be looked after.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many batches are looked after at a time; the others wait.
const BATCHES_AT_ONCE: usize = 4;
/// Pause before a batch is taken up again that went wrong.
const AGAIN_AFTER: Duration = Duration::from_secs(2);
/// How long a piece of a file of others is looked for.
const FETCH_LIMIT: Duration = Duration::from_secs(20);
/// How long batches, and the marks of removed files, are kept, in milliseconds: 30 days.
const KEPT_MS: u64 = 30 * 24 * 3_600_000;
/// Blocks that were put within this time stay: whoever put them may be about to refer to them.
const YOUNG: Duration = Duration::from_secs(300);

/// Runs beside the tasks; made by [`super::files`].
pub struct FilesService {
    pub(super) shared: Arc<Shared>,
    pub(super) orphans: mpsc::Receiver<Vec<Hash>>,
}

impl fmt::Debug for FilesService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesService").finish_non_exhaustive()
    }
}

impl FilesService {
    /// Runs until `stop`. The databases and the tasks have to run until then.
    ///
    /// A part that fails or panics is logged and started anew, after a pause of half a second that doubles up to 30 s. A database that can no
    /// longer be written is opened anew as soon as the disk has room.
    pub async fn run(self, stop: CancellationToken) {
        let Self { shared, orphans } = self;
        shared.db.hold_blocks(HOLDER, Arc::new(BlocksOfFiles(Arc::downgrade(&shared))));
        let orphans = Mutex::new(orphans);
        while let Some(table) = stop.run_until_cancelled(open(&shared)).await {
            shared.set_table(Some(table.clone()));
            let leave = stop.child_token();
            tokio::join!(
                keep_going("batches", leave.clone(), || look_after(&shared, &table, &leave)),
                keep_going("files of others", leave.clone(), || have_all(&shared, &table, &leave)),
                keep_going("blocks of files", leave.clone(), || remove_orphans(&shared, &orphans, &leave)),
                leave_failed("files and batches", shared.db.directory(), || table.database.failure(), &leave),
            );
            shared.set_table(None);
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = table.database.close().await {
                tracing::debug!(%error, "the database of files was closed that had failed");
            }
        }
    }
}

async fn open(shared: &Shared) -> Table {
    loop {
        let options = OpenOptions::of(DatabaseType::Documents).access(Access::Everyone);
        match shared.db.create(FILES, options).await {
            Ok(database) => return Table { database },
            Err(error) => tracing::error!(%error, "the database of files and batches cannot be opened"),
        }
        sleep(OPEN_PAUSE).await;
    }
}

/// Waits for a change of the documents.
async fn change(events: &mut Receiver<Event>) -> Result<(), PartEnded> {
    loop {
        match events.recv().await {
            Ok(Event::Update(_)) | Err(RecvError::Lagged(_)) => return Ok(()),
            Ok(_) => {}
            Err(RecvError::Closed) => return Err(PartEnded::MeshEnded),
        }
    }
}

/// Looks after the batches that are this node's to look after, until `stop`.
async fn look_after(shared: &Shared, table: &Table, stop: &CancellationToken) -> Result<(), PartEnded> {
    let begun = Instant::now();
    let mut events = table.database.events();
    let mut watch = Watch::new(shared.me.clone(), shared.grace, shared.rank_step);
    let mut driving = FuturesUnordered::new();
    let (mut driven, mut paused) = (BTreeSet::new(), HashMap::<String, Instant>::new());
    loop {
        let all = table.all();
        let mut open = false;
        let present = present(shared);
        // Where a line of theirs stands tells how they go on.
        let unfinished = all.batches.iter().filter(|(_, facts)| !facts.is_over());
        shared.tasks.hold_batches(unfinished.map(|(id, _)| id.clone()).collect());
        for (id, facts) in all.batches.iter().filter(|(_, facts)| !facts.is_over()) {
            open = true;
            let waits = driven.contains(id) || paused.get(id).is_some_and(|until| *until > Instant::now());
            // What a node submits that seals everything could be read nowhere else.
            let is_sealed = shared.seals_all && facts.made.by != shared.me.as_str();
            if is_sealed && facts.has_to_end(shared.now_ms()).is_none() {
                continue;
            }
            if !waits && driven.len() < BATCHES_AT_ONCE && watch.is_ours(begun.elapsed(), id, &facts.made.by, &present)
            {
                driven.insert(id.clone());
                driving.push(one(shared, table, id.clone()));
            }
        }
        forget_old(shared, table, &all).await;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some((id, done)) = driving.next(), if !driving.is_empty() => {
                driven.remove(&id);
                paused.remove(&id);
                if let Err(error) = done {
                    tracing::warn!(batch.id = id, %error, "a batch cannot go on; it is taken up again");
                    paused.insert(id, Instant::now() + AGAIN_AFTER);
                }
            }
            changed = change(&mut events) => changed?,
            () = sleep(LOOK_EVERY), if open => {}
        }
    }
}

async fn one(shared: &Shared, table: &Table, id: String) -> (String, Result<(), FilesError>) {
    let done = drive(shared, table, &id).await;
    (id, done)
}

fn present(shared: &Shared) -> Present {
    let peers = shared.swarm.peers().into_iter();
    Present { alive: peers.filter(|peer| peer.state != PeerState::Gone).map(|peer| peer.node_id).collect() }
}

/// Takes away what is older than anybody needs it. All nodes do, which does no harm.
async fn forget_old(shared: &Shared, table: &Table, all: &All) {
    let Some(before) = shared.now_ms().checked_sub(KEPT_MS) else { return };
    for (id, facts) in &all.batches {
        if facts.made.created_at < before
            && facts.is_over()
            && let Err(error) = table.forget_batch(id).await
        {
            tracing::warn!(batch.id = id, %error, "an old batch was not forgotten");
        }
    }
    let removed = all.files.values().filter(|file| file.removed_at.is_some_and(|at| at < before));
    for file in removed {
        if let Err(error) = table.forget_file(&file.id).await {
            tracing::warn!(file.id = file.id, %error, "a removed file was not forgotten");
        }
    }
}

/// Has everything here that is in files and batches, and removes what is in none any more, until `stop`.
async fn have_all(shared: &Shared, table: &Table, stop: &CancellationToken) -> Result<(), PartEnded> {
    let mut events = table.database.events();
    let (mut had, mut gone) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let all = table.all();
        let mut missing = false;
        for root in roots(&all) {
            if had.contains(&root) {
                continue;
            }
            let first = makers(&all, &root);
            match stop.run_until_cancelled(fetch(shared, &root, &first)).await {
                None => return Ok(()),
                Some(Ok(())) => drop(had.insert(root)),
                Some(Err(error)) => {
                    missing = true;
                    tracing::debug!(block = root, %error, "what is in a file is not here yet");
                }
            }
        }
        remove_gone(shared, &all, &mut had, &mut gone).await;
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = change(&mut events) => changed?,
            () = sleep(FETCH_LIMIT), if missing => {}
        }
    }
}

/// Returns the nodes that have something if nobody else does.
fn makers(all: &All, root: &str) -> Vec<NodeId> {
    let of_files = all.files.values().filter(|file| file.root == root).map(|file| &file.by);
    let of_batches = all.batches.values().map(|facts| &facts.made.by);
    of_files.chain(of_batches).filter_map(|by| NodeId::parse(by).ok()).take(3).collect()
}

/// Has a file here. The last part is fetched last: where it is here, all are.
async fn fetch(shared: &Shared, root: &str, first: &[NodeId]) -> Result<(), FilesError> {
    let hash: Hash = root.parse().map_err(|_| FilesError::Unreached(format!("{root} is no name of a block")))?;
    let block = shared.db.fetch_block(&hash, first, FETCH_LIMIT).await?;
    let parts = parts_of(&block).unwrap_or_default();
    if let Some(last) = parts.last()
        && shared.db.block(last).await?.is_none()
    {
        for part in &parts {
            shared.db.fetch_block(part, first, FETCH_LIMIT).await?;
        }
    }
    Ok(())
}

/// Removes what is in removed files, where nobody needs it any more.
async fn remove_gone(shared: &Shared, all: &All, had: &mut BTreeSet<String>, gone: &mut BTreeSet<String>) {
    let needed = roots(all);
    let removed = all.files.values().filter(|file| file.removed_at.is_some()).map(|file| file.root.clone());
    let known: BTreeSet<String> = removed.chain(had.iter().cloned()).collect();
    for root in known.into_iter().filter(|root| !needed.contains(root)) {
        had.remove(&root);
        if gone.contains(&root) {
            continue;
        }
        match remove(shared, &root).await {
            Ok(()) => drop(gone.insert(root)),
            Err(error) => tracing::debug!(block = root, %error, "what is in a removed file stays for now"),
        }
    }
    gone.retain(|root| !needed.contains(root));
}

async fn remove(shared: &Shared, root: &str) -> Result<(), FilesError> {
    let Ok(hash) = root.parse::<Hash>() else { return Ok(()) };
    let Some(block) = shared.db.block(&hash).await? else { return Ok(()) };
    let blocks: HashSet<Hash> = parts_of(&block).unwrap_or_default().into_iter().chain([hash]).collect();
    // A file that is just being taken with the same parts would have put them within this time.
    let removed = shared.db.remove_blocks(blocks.clone(), YOUNG).await?;
    if !removed.young.is_empty() {
        later(shared, removed.young);
    }
    Ok(())
}

/// Has blocks removed once they are old enough; where too many wait they stay on the disk.
fn later(shared: &Shared, blocks: Vec<Hash>) {
    if shared.orphans.try_send(blocks).is_err() {
        tracing::debug!("blocks of files stay on the disk");
    }
}

/// Removes the blocks of uploads that broke off, and of files that came and went, until `stop`.
async fn remove_orphans(
    shared: &Shared,
    orphans: &Mutex<mpsc::Receiver<Vec<Hash>>>,
    stop: &CancellationToken,
) -> Result<(), PartEnded> {
    let orphans = &mut *orphans.lock().await;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            blocks = orphans.recv() => {
                let blocks: HashSet<Hash> = blocks.ok_or(PartEnded::MeshEnded)?.into_iter().collect();
                if stop.run_until_cancelled(sleep(YOUNG)).await.is_none() {
                    return Ok(());
                }
                if let Err(error) = shared.db.remove_blocks(blocks, YOUNG).await {
                    tracing::debug!(%error, "blocks of files stay on the disk");
                }
            }
        }
    }
}
