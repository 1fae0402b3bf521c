use std::path::Path;

use bombus_core::identity::NodeKey;
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::super::wire::{Frame, Frames};
use super::super::{AddressOrigin, OwnerKey, Standing, SwarmId, Ticket};
use super::hub::Hub;
use super::*;

/// How long a test waits for what it expects; its clock runs as fast as nothing happens.
const LIMIT: Duration = Duration::from_secs(120);

/// A running node.
struct Node {
    id: NodeId,
    dir: TempDir,
    handle: MembershipHandle,
    stop: CancellationToken,
    task: JoinHandle<Result<(), MembershipError>>,
}

impl Node {
    fn start(hub: &Arc<Hub>, seed: u8) -> Self {
        Self::start_on(hub, seed, tempfile::tempdir().unwrap())
    }

    fn start_on(hub: &Arc<Hub>, seed: u8, dir: TempDir) -> Self {
        let id = node(seed);
        let (handle, service) = open(dir.path()).serve(MembershipTiming::default()).unwrap();
        let links = Hub::enter(hub, &id, handle.current());
        let stop = CancellationToken::new();
        let task = tokio::spawn(service.run_over(links, stop.clone()));
        Self { id, dir, handle, stop, task }
    }

    /// Starts a node as a member of the swarm of another.
    async fn member(hub: &Arc<Hub>, seed: u8, of: &Self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ticket = of.handle.invite(Vec::new()).await.unwrap();
        open(dir.path()).join(&ticket, false).unwrap();
        Self::start_on(hub, seed, dir)
    }

    async fn stop(self, hub: &Hub) -> TempDir {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        hub.exit(&self.id);
        self.dir
    }

    async fn until(&self, what: impl FnMut(&MembershipState) -> bool) -> MembershipState {
        timeout(LIMIT, self.handle.current().wait_for(what)).await.expect("it should come to that").unwrap().clone()
    }

    async fn standing(&self) -> Standing {
        self.handle.standing().await.unwrap()
    }
}

/// Waits until nothing is left to do: only then does the paused clock move.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn node(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn open(dir: &Path) -> Membership {
    Membership::open(dir).unwrap()
}

async fn linked(hub: &Hub, a: &Node, b: &Node) {
    timeout(LIMIT, hub.until_linked(&a.id, &b.id, true)).await.expect("they should be linked");
}

async fn unlinked(hub: &Hub, a: &Node, b: &Node) {
    timeout(LIMIT, hub.until_linked(&a.id, &b.id, false)).await.expect("they should not be linked");
}

/// Three nodes of one swarm, all linked.
async fn three(hub: &Arc<Hub>) -> [Node; 3] {
    hub.wire_all(&[node(1), node(2), node(3)]);
    let a = Node::start(hub, 1);
    let (b, c) = (Node::member(hub, 2, &a).await, Node::member(hub, 3, &a).await);
    for (x, y) in [(&a, &b), (&a, &c), (&b, &c)] {
        linked(hub, x, y).await;
    }
    quiet().await;
    [a, b, c]
}

#[tokio::test(start_paused = true)]
async fn a_kicked_peer_is_out_and_the_others_go_on_with_another_key() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let old = a.handle.state();
    let handed = a.handle.kick(c.id.clone()).await.unwrap();
    assert_eq!(handed, Handed { generation: Generation(1), reached: vec![b.id.clone()], missed: Vec::new() });
    let new = b.until(|state| state.generation == Generation(1)).await;
    assert_eq!(new, a.handle.state());
    assert_ne!(new.privacy, old.privacy);
    assert!(new.removed.contains(&c.id));
    linked(&hub, &a, &b).await;
    unlinked(&hub, &a, &c).await;
    unlinked(&hub, &b, &c).await;
    assert_eq!(c.handle.state(), old, "who is out does not get the key");
}

#[tokio::test(start_paused = true)]
async fn a_kicked_peer_stays_out_after_everybody_started_again_even_with_the_key() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    a.handle.kick(c.id.clone()).await.unwrap();
    b.until(|state| state.generation == Generation(1)).await;
    let ticket = a.handle.invite(Vec::new()).await.unwrap();
    let dirs = [a.stop(&hub).await, b.stop(&hub).await, c.stop(&hub).await];
    // Somebody passed the new key on to it.
    open(dirs[2].path()).join(&ticket, false).unwrap();
    let mut seeds = 1..;
    let [a, b, c] = dirs.map(|dir| Node::start_on(&hub, seeds.next().unwrap(), dir));
    linked(&hub, &a, &b).await;
    assert_eq!(c.handle.state().privacy, a.handle.state().privacy);
    assert!(a.handle.is_removed(&c.id) && b.handle.is_removed(&c.id));
    assert!(!hub.are_linked(&a.id, &c.id) && !hub.are_linked(&b.id, &c.id));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_only_a_third_reaches_gets_the_key_and_counts_as_reached() {
    let hub = Hub::new();
    hub.wire(&node(1), &node(2));
    hub.wire(&node(2), &node(3));
    hub.wire(&node(3), &node(4));
    let a = Node::start(&hub, 1);
    let b = Node::member(&hub, 2, &a).await;
    let c = Node::member(&hub, 3, &a).await;
    let d = Node::member(&hub, 4, &a).await;
    for (x, y) in [(&a, &b), (&b, &c), (&c, &d)] {
        linked(&hub, x, y).await;
    }
    quiet().await;
    let handed = a.handle.rekey().await.unwrap();
    let reached: BTreeSet<_> = handed.reached.into_iter().collect();
    assert_eq!(reached, [b.id.clone(), c.id.clone(), d.id.clone()].into());
    for node in [&b, &c, &d] {
        assert_eq!(node.until(|state| state.generation == Generation(1)).await, a.handle.state());
    }
    for (x, y) in [(&a, &b), (&b, &c), (&c, &d)] {
        linked(&hub, x, y).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_away_is_named_and_comes_back_by_a_new_ticket() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let (c_id, c_dir) = (c.id.clone(), c.stop(&hub).await);
    let handed = a.handle.rekey().await.unwrap();
    assert_eq!((handed.reached, handed.missed), (vec![b.id.clone()], vec![c_id.clone()]));
    assert_eq!(missing(&a), [c_id], "and its doctor can go on to name it");
    b.until(|state| state.generation == Generation(1)).await;
    let c = Node::start_on(&hub, 3, c_dir);
    linked(&hub, &a, &b).await;
    assert!(!hub.are_linked(&a.id, &c.id) && !hub.are_linked(&b.id, &c.id));
    let standing = c.standing().await;
    assert_eq!(standing.generation, Generation(0));
    assert!(standing.last_contact_s.is_some(), "its doctor can tell that it once was in");
    let joined = c.handle.join(b.handle.invite(Vec::new()).await.unwrap(), false).await.unwrap();
    assert!(joined.new_key && joined.from == joined.to);
    linked(&hub, &a, &c).await;
    linked(&hub, &b, &c).await;
}

#[tokio::test(start_paused = true)]
async fn who_joins_later_learns_who_is_removed() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    a.handle.kick(c.id.clone()).await.unwrap();
    b.until(|state| state.generation == Generation(1)).await;
    hub.wire(&node(4), &node(2));
    let d = Node::member(&hub, 4, &b).await;
    let state = d.until(|state| state.removed.contains(&c.id)).await;
    assert_eq!(state, b.handle.state());
}

#[tokio::test(start_paused = true)]
async fn a_key_changed_while_the_node_was_off_is_handed_over_when_it_starts() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let c_id = c.id.clone();
    let dir = a.stop(&hub).await;
    open(dir.path()).kick(&node(1), &c_id).unwrap();
    let a = Node::start_on(&hub, 1, dir);
    assert_eq!(a.handle.state().privacy, b.handle.state().privacy, "it begins with the key that the others have");
    let state = b.until(|state| state.generation == Generation(1)).await;
    assert_eq!(a.until(|state| state.generation == Generation(1)).await.privacy, state.privacy);
    assert!(state.removed.contains(&c_id));
    linked(&hub, &a, &b).await;
    assert!(!a.standing().await.hand_over_due);
    unlinked(&hub, &a, &c).await;
    unlinked(&hub, &b, &c).await;
}

/// Who a node knows to lack its key.
fn missing(node: &Node) -> Vec<NodeId> {
    let known = node.handle.known_peers().into_iter();
    known.filter(|peer| peer.missed_key).map(|peer| peer.node_id).collect()
}

#[tokio::test(start_paused = true)]
async fn who_missed_a_key_changed_while_the_node_was_off_is_remembered_until_it_is_back() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let c_dir = c.stop(&hub).await;
    let dir = a.stop(&hub).await;
    open(dir.path()).rekey().unwrap();
    let a = Node::start_on(&hub, 1, dir);
    let over = open(a.dir.path()).privacy();
    a.until(|state| state.privacy == over).await;
    linked(&hub, &a, &b).await;
    assert_eq!(missing(&a), [node(3)], "the other one has it");
    let dir = a.stop(&hub).await;
    let a = Node::start_on(&hub, 1, dir);
    assert_eq!(missing(&a), [node(3)], "that outlasts the node");

    let c = Node::start_on(&hub, 3, c_dir);
    c.handle.join(b.handle.invite(Vec::new()).await.unwrap(), false).await.unwrap();
    linked(&hub, &a, &c).await;
    quiet().await;
    assert_eq!(missing(&a), [] as [NodeId; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_hand_over_that_breaks_off_is_begun_anew_and_remembers_who_missed_it() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    c.stop(&hub).await;
    let dir = a.stop(&hub).await;
    open(dir.path()).rekey().unwrap();
    let a = Node::start_on(&hub, 1, dir);
    b.until(|state| state.generation == Generation(1)).await;
    assert!(a.standing().await.hand_over_due, "it waits for the one that is off");
    a.task.abort();
    hub.exit(&a.id);
    let a = Node::start_on(&hub, 1, a.dir);
    let over = open(a.dir.path()).privacy();
    a.until(|state| state.privacy == over).await;
    linked(&hub, &a, &b).await;
    quiet().await;
    assert_eq!(missing(&a), [node(3)], "who was reached by the first try is back by itself");
    assert!(!a.standing().await.hand_over_due);
}

/// Starts a node with the key of a ticket from before, that nobody knows.
fn newcomer(hub: &Arc<Hub>, seed: u8, ticket: &Ticket) -> Node {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).join(ticket, false).unwrap();
    Node::start_on(hub, seed, dir)
}

#[tokio::test(start_paused = true)]
async fn a_removed_machine_does_not_get_the_new_key_under_another_name() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    hub.wire_all(&[node(1), node(2), node(4)]);
    let (old, ticket) = (a.handle.state(), a.handle.invite(Vec::new()).await.unwrap());
    // One that is off holds the end of the hand-over up.
    let (c_id, _dir) = (c.id.clone(), c.stop(&hub).await);
    let dir = a.stop(&hub).await;
    open(dir.path()).kick(&node(1), &node(9)).unwrap();
    let a = Node::start_on(&hub, 1, dir);
    b.until(|state| state.generation == Generation(1)).await;
    let d = newcomer(&hub, 4, &ticket);
    linked(&hub, &a, &d).await;
    quiet().await;
    assert!(a.handle.is_handing_over() && a.standing().await.hand_over_due);
    assert_eq!(open(d.dir.path()).state(), old, "it comes to nothing by that");

    // The hand-over that breaks off takes it for no member either when it is begun anew.
    let dir = a.stop(&hub).await;
    let a = Node::start_on(&hub, 1, dir);
    linked(&hub, &a, &d).await;
    let over = open(a.dir.path()).privacy();
    a.until(|state| state.privacy == over).await;
    linked(&hub, &a, &b).await;
    quiet().await;
    assert!(!hub.are_linked(&a.id, &d.id) && !a.handle.is_handing_over());
    assert_eq!(open(d.dir.path()).state(), old);
    assert_eq!(d.handle.state(), old);
    let missed: BTreeSet<_> = missing(&a).into_iter().collect();
    assert_eq!(missed, [c_id, d.id.clone()].into(), "it counts as one that was not told");
}

#[tokio::test(start_paused = true)]
async fn who_passes_a_new_key_on_does_not_tell_newcomers_either() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    hub.wire(&node(2), &node(4));
    let (old, ticket) = (a.handle.state(), a.handle.invite(Vec::new()).await.unwrap());
    // It takes streams and says nothing, so that the hand-over goes on.
    hub.wire(&node(2), &node(5));
    let (_state, silent) = watch::channel(a.handle.state());
    let _silent = Hub::enter(&hub, &node(5), silent);
    timeout(LIMIT, hub.until_linked(&b.id, &node(5), true)).await.unwrap();
    quiet().await;
    let owner = a.handle.clone();
    let rekeyed = tokio::spawn(async move { owner.rekey().await.unwrap() });
    quiet().await;
    assert!(a.handle.is_handing_over() && b.handle.is_handing_over());
    let d = newcomer(&hub, 4, &ticket);
    linked(&hub, &b, &d).await;
    let handed = rekeyed.await.unwrap();
    let reached: BTreeSet<_> = handed.reached.into_iter().collect();
    assert_eq!(reached, [b.id.clone(), c.id.clone()].into());
    b.until(|state| state.generation == Generation(1)).await;
    linked(&hub, &a, &b).await;
    assert_eq!((d.handle.state(), open(d.dir.path()).state()), (old.clone(), old));
}

#[tokio::test(start_paused = true)]
async fn after_a_change_while_it_was_off_a_lonely_node_goes_over_in_the_end() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let dir = a.stop(&hub).await;
    b.stop(&hub).await;
    c.stop(&hub).await;
    let change = open(dir.path()).rekey().unwrap();
    let a = Node::start_on(&hub, 1, dir);
    let begun = Instant::now();
    let over = open(a.dir.path()).privacy();
    a.until(|state| state.privacy == over).await;
    assert!(begun.elapsed() >= MembershipTiming::default().hand_over_at_start);
    assert_eq!(a.handle.state().generation, change.generation());
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_silent_holds_nothing_up_for_longer_than_the_limit() {
    let hub = Hub::new();
    hub.wire_all(&[node(1), node(2), node(3)]);
    let a = Node::start(&hub, 1);
    let b = Node::member(&hub, 2, &a).await;
    // It takes streams and says nothing.
    let (state, silent) = watch::channel(a.handle.state());
    let mut silent = Hub::enter(&hub, &node(3), silent);
    let mut streams = Vec::new();
    let taking = tokio::spawn(async move {
        while let Some(event) = silent.next().await {
            if let LinkEvent::Incoming(_, stream) = event {
                streams.push(stream);
            }
        }
    });
    linked(&hub, &a, &b).await;
    timeout(LIMIT, hub.until_linked(&a.id, &node(3), true)).await.unwrap();
    quiet().await;
    let begun = Instant::now();
    let handed = a.handle.rekey().await.unwrap();
    assert!(begun.elapsed() <= MembershipTiming::default().hand_over, "{:?}", begun.elapsed());
    assert_eq!((handed.reached, handed.missed), (vec![b.id.clone()], vec![node(3)]));
    assert_eq!(b.until(|state| state.generation == Generation(1)).await, a.handle.state());
    drop(state);
    taking.abort();
}

/// Speaks to a node as one of its members, by hand.
async fn stream_to(hub: &Arc<Hub>, from: &Node, to: &Node) -> Frames<DuplexStream> {
    Frames::new(Hub::open(hub, from.id.clone(), to.id.clone()).await.unwrap())
}

/// Sends a change and returns whether it was stored; `None` where it was not even asked for.
async fn send(
    frames: &mut Frames<DuplexStream>,
    swarm_id: &SwarmId,
    change: SignedChange,
    key: SwarmKey,
) -> Option<bool> {
    let hash = change.hash();
    frames.send(&Frame::Offer { swarm_id: swarm_id.to_string(), changes: vec![hash] }).await.unwrap();
    let Some(Frame::Want { changes }) = frames.next().await.unwrap() else { panic!("no answer") };
    if changes.is_empty() {
        return None;
    }
    frames.send(&Frame::Change { change: Box::new(change), key: Some(key), within_ms: 100 }).await.unwrap();
    match frames.next().await.unwrap() {
        Some(Frame::Ack { change, stored }) if change == hash => Some(stored),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn forged_and_older_changes_change_nothing_and_are_counted() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    let swarm_id = a.handle.state().swarm_id;
    let old = open(a.dir.path());
    let (owner, old_key) = (old.owner().unwrap().clone(), old.key().unwrap().clone());
    a.handle.rekey().await.unwrap();
    let before = c.until(|state| state.generation == Generation(1)).await;
    linked(&hub, &b, &c).await;

    // Made out to the swarm, and signed by somebody who is not its owner.
    let forger = OwnerKey::from_secret(&[9; 32]);
    let forged = SignedChange::sign(&forger, Generation(9), &old_key, [a.id.clone()].into());
    let mut json = serde_json::to_value(&forged).unwrap();
    json["swarm_id"] = swarm_id.to_string().into();
    let forged = serde_json::from_value(json).unwrap();
    assert_eq!(send(&mut stream_to(&hub, &b, &c).await, &swarm_id, forged, old_key.clone()).await, Some(false));

    // Signed by the owner, and outranked long ago.
    let older = SignedChange::sign(&owner, Generation(0), &old_key, BTreeSet::new());
    assert_eq!(send(&mut stream_to(&hub, &b, &c).await, &swarm_id, older, old_key.clone()).await, Some(true));

    // Of the owner, and with another key than the one it names.
    let keyless = SignedChange::sign(&owner, Generation(9), &SwarmKey::from_bytes([5; 32]), BTreeSet::new());
    assert_eq!(send(&mut stream_to(&hub, &b, &c).await, &swarm_id, keyless, old_key.clone()).await, Some(false));

    // About another swarm.
    let other = SignedChange::sign(&forger, Generation(9), &old_key, BTreeSet::new());
    let other_swarm = other.swarm_id().clone();
    assert_eq!(send(&mut stream_to(&hub, &b, &c).await, &other_swarm, other, old_key).await, None);

    let ignored = c.handle.ignored().await.unwrap();
    assert_eq!((ignored.forged, ignored.older, ignored.without_key), (1, 1, 1));
    assert_eq!(c.handle.state(), before);
    assert_eq!(open(c.dir.path()).state(), before);
}

#[tokio::test(start_paused = true)]
async fn what_makes_no_sense_ends_the_stream_and_nothing_else() {
    let hub = Hub::new();
    let [a, b, _c] = three(&hub).await;
    for frame in [Frame::Passed { reached: Vec::new() }, Frame::Want { changes: Vec::new() }] {
        let mut frames = stream_to(&hub, &b, &a).await;
        frames.send(&frame).await.unwrap();
        assert!(!matches!(timeout(LIMIT, frames.next()).await.unwrap(), Ok(Some(_))));
    }
    assert_eq!(a.handle.rekey().await.unwrap().reached.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_opens_many_streams_gets_few_answered() {
    let hub = Hub::new();
    let [a, b, _c] = three(&hub).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(stream_to(&hub, &b, &a).await);
    }
    let mut ended = 0;
    for frames in &mut streams {
        // Those that are answered are waited for; the others end at once.
        if let Ok(next) = timeout(Duration::from_secs(1), frames.next()).await {
            assert!(!matches!(next, Ok(Some(_))));
            ended += 1;
        }
    }
    assert!(ended >= 20 - SERVED_OF_PEER_MAX, "{ended} ended");
    drop(streams);
    assert_eq!(a.handle.rekey().await.unwrap().reached.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_running_node_joins_and_leaves() {
    let hub = Hub::new();
    hub.wire_all(&[node(1), node(2)]);
    let (a, b) = (Node::start(&hub, 1), Node::start(&hub, 2));
    assert!(!hub.are_linked(&a.id, &b.id));
    let own = b.handle.state();
    let ticket = a.handle.invite(vec!["/ip4/192.0.2.1/tcp/7891".to_owned()]).await.unwrap();
    b.handle.join(ticket, false).await.unwrap();
    assert_eq!(b.handle.state(), a.handle.state());
    assert_eq!(b.handle.known_addresses()[0].addr, "/ip4/192.0.2.1/tcp/7891");
    linked(&hub, &a, &b).await;
    let left = b.handle.leave().await.unwrap();
    assert_eq!(left.from, a.handle.state().swarm_id);
    assert_ne!(b.handle.state().swarm_id, own.swarm_id);
    unlinked(&hub, &a, &b).await;
    assert!(b.handle.known_addresses().is_empty());
    let other = Node::start(&hub, 3).handle.invite(Vec::new()).await.unwrap();
    assert!(matches!(a.handle.join(other, false).await, Err(JoinError::OtherSwarm { .. })), "it had a peer");
}

#[tokio::test(start_paused = true)]
async fn only_the_owner_kicks_and_nobody_kicks_oneself() {
    let hub = Hub::new();
    let [a, b, c] = three(&hub).await;
    assert!(matches!(b.handle.kick(c.id.clone()).await, Err(OwnerError::NotOwner)));
    assert!(matches!(a.handle.kick(a.id.clone()).await, Err(OwnerError::Oneself)));
    b.handle.import_owner(a.handle.export_owner().await.unwrap()).await.unwrap();
    assert_eq!(b.handle.kick(c.id.clone()).await.unwrap().reached, vec![a.id.clone()]);
    assert!(a.handle.is_removed(&c.id));
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_of_peers_outlasts_the_node() {
    let hub = Hub::new();
    let [a, b, _c] = three(&hub).await;
    a.handle.learned(&b.id, "/ip4/192.0.2.2/tcp/7891", AddressOrigin::Peer);
    a.handle.named(&b.id, "bumble");
    let b_id = b.id.clone();
    let dir = a.stop(&hub).await;
    let a = Node::start_on(&hub, 1, dir);
    assert!(a.handle.known_addresses().iter().any(|known| known.peer.as_ref() == Some(&b_id)));
    assert!(a.handle.known_peers().iter().any(|known| known.name.as_deref() == Some("bumble")));
}

#[tokio::test(start_paused = true)]
async fn without_its_service_a_handle_says_so() {
    let hub = Hub::new();
    let a = Node::start(&hub, 1);
    let handle = a.handle.clone();
    a.stop(&hub).await;
    assert!(matches!(handle.leave().await, Err(JoinError::Membership(MembershipError::Stopped))));
    assert!(matches!(handle.rekey().await, Err(OwnerError::Membership(MembershipError::Stopped))));
}
