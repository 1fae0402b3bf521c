//! The checks of many blocks at once, on all cores.

use std::{collections::HashMap, num::NonZero, sync::LazyLock, thread};

use crate::{
    cid::Hash,
    entry::{BlockError, Codec, Received, Refusal},
    identity::Identity,
    log::Stamp,
    sync::Block,
};

/// Below so many blocks further threads cost more than they save: a check takes about 50 us.
const PARALLEL_MIN: usize = 32;

/// How many threads run at once; the system takes longer to say so than a check takes.
static CORES: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));

/// A block that was read, and what its own checks said.
pub(super) type Checked = Result<(Received, Result<Stamp, Refusal>), BlockError>;

/// Checks an entry by itself. An identity that is not known counts as not valid.
pub(super) fn own(received: &Received, identities: &HashMap<Hash, Option<Identity>>) -> Result<Stamp, Refusal> {
    let entry = received.entry.as_ref().map_err(|refusal| *refusal)?;
    let identity = identities.get(&entry.identity()).and_then(Option::as_ref);
    let writer = entry.examine(identity)?;
    let id = identity.ok_or(Refusal::Identity)?.id();
    Ok(Stamp { writer, identity: id.into() })
}

/// Reads and checks blocks.
pub(super) fn all(codec: &Codec, identities: &HashMap<Hash, Option<Identity>>, blocks: &[Block]) -> Vec<Checked> {
    on_all_cores(blocks, |block| {
        let received = codec.read(&block.bytes)?;
        let stamp = own(&received, identities);
        Ok((received, stamp))
    })
}

/// Checks what was read. None stands for what names an identity that is not there.
pub(super) fn stamps(
    received: &[(Block, Result<Received, BlockError>)],
    identities: &HashMap<Hash, Option<Identity>>,
) -> Vec<Option<Result<Stamp, Refusal>>> {
    on_all_cores(received, |(_, received)| {
        let Ok(received) = received else { return Some(Err(Refusal::Form)) };
        let is_there = |identity| identities.contains_key(&identity);
        received.entry.as_ref().map_or(true, |entry| is_there(entry.identity())).then(|| own(received, identities))
    })
}

/// Does something with each of many, in their order.
pub(crate) fn on_all_cores<T: Sync, R: Send>(items: &[T], check: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = if items.len() < PARALLEL_MIN { 1 } else { *CORES };
    if threads == 1 {
        return items.iter().map(check).collect();
    }
    let check = &check;
    thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(threads));
        let running: Vec<_> =
            parts.map(|part| scope.spawn(move || part.iter().map(check).collect::<Vec<_>>())).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("the checks do not panic")).collect()
    })
}
