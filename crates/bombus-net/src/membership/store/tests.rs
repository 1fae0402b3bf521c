use std::fs;

use bombus_core::identity::NodeKey;

use super::*;

fn node(seed: u8) -> NodeId {
    NodeKey::from_secret(&[seed; 32]).node_id()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(dir: &tempfile::TempDir) -> Membership {
    Membership::open(dir.path()).unwrap()
}

fn folder(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("swarms").join(open(dir).swarm_id().as_str())
}

fn key(membership: &Membership) -> SwarmKey {
    let Privacy::Closed(key) = membership.privacy() else { panic!("no key") };
    key
}

fn no_addresses() -> [String; 0] {
    []
}

fn ticket(membership: &Membership) -> Ticket {
    membership.ticket(&no_addresses()).unwrap()
}

fn damage(result: Result<Membership, MembershipError>) -> String {
    match result {
        Err(MembershipError::Damaged { path, reason }) => format!("{}: {reason}", path.display()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_start_begins_a_swarm_and_the_next_one_finds_it() {
    let dir = dir();
    assert!(Membership::existing(dir.path()).unwrap().is_none());
    let first = open(&dir);
    let again = open(&dir);
    assert_eq!(again.state(), first.state());
    assert_eq!(again.owner().unwrap().id(), first.owner().unwrap().id());
    assert_eq!(first.swarm_id(), SwarmId::of(&first.owner().unwrap().id()));
    let file = fs::read_to_string(folder(&dir).join("swarm.key")).unwrap();
    assert_eq!(file.parse::<SwarmKey>().unwrap(), key(&first), "the key stands in the file that other peers read");
    let existing = Membership::existing(dir.path()).unwrap().unwrap();
    assert_eq!(existing.state(), first.state());
}

#[cfg(unix)]
#[test]
fn secrets_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = dir();
    let mut membership = open(&dir);
    membership.rekey().unwrap();
    assert_eq!(mode(&dir.path().join("swarms")), 0o700);
    assert_eq!(mode(&folder(&dir)), 0o700);
    let there: Vec<_> = membership.secrets().into_iter().filter(|path| path.exists()).collect();
    assert_eq!(there.len(), 3, "swarm.key, swarm.key.previous, owner.key");
    for path in there {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn a_ticket_leads_another_machine_into_the_swarm() {
    let (dir_a, dir_b) = (dir(), dir());
    let (mut a, mut b) = (open(&dir_a), open(&dir_b));
    let own = b.swarm_id();
    let address = format!("/ip4/192.0.2.1/tcp/7891/p2p/{}", node(1));
    let line = a.invite(&[address.as_str()]).unwrap().to_string();
    let joined = b.join(&line.parse().unwrap(), false).unwrap();
    assert_eq!(joined, Joined { from: own.clone(), to: a.swarm_id(), new_key: true });
    let b = open(&dir_b);
    assert_eq!(b.state(), a.state());
    assert!(b.owner().is_none());
    assert_eq!(b.read_known().addresses()[0].addr, "/ip4/192.0.2.1/tcp/7891");
    assert_eq!(b.read_known().addresses()[0].peer, Some(node(1)));
    assert!(dir_b.path().join("swarms").join(own.as_str()).join("swarm.key").exists(), "the old folder stays");
}

#[test]
fn a_member_invites_like_the_first_node() {
    let (dir_a, dir_b, dir_c) = (dir(), dir(), dir());
    let (a, mut b, mut c) = (open(&dir_a), open(&dir_b), open(&dir_c));
    b.join(&ticket(&a), false).unwrap();
    c.join(&ticket(&b), false).unwrap();
    assert_eq!(c.state(), a.state());
}

#[test]
fn a_node_with_another_swarm_switches_only_when_told_to() {
    let (dir_a, dir_b) = (dir(), dir());
    let (a, mut b) = (open(&dir_a), open(&dir_b));
    b.mark_used().unwrap();
    let before = b.state();
    let error = b.join(&ticket(&a), false).unwrap_err();
    assert!(matches!(error, JoinError::OtherSwarm { .. }) && error.to_string().contains("--switch"), "{error}");
    assert_eq!(open(&dir_b).state(), before);
    b.join(&ticket(&a), true).unwrap();
    assert_eq!(open(&dir_b).state(), a.state());
}

#[test]
fn an_exported_owner_key_and_an_invitation_given_or_taken_count_as_use() {
    let (dir_a, dir_b, dir_c) = (dir(), dir(), dir());
    let (mut a, mut b, mut c) = (open(&dir_a), open(&dir_b), open(&dir_c));
    a.export_owner().unwrap();
    assert!(c.invite(&["no address"]).is_err() && !c.standing().used, "nobody got anything");
    b.join(&c.invite(&no_addresses()).unwrap(), false).unwrap();
    for (mut membership, dir) in [(a, &dir_a), (b, &dir_b), (c, &dir_c)] {
        assert!(membership.standing().used);
        assert!(open(dir).standing().used);
        let other = open(&self::dir());
        assert!(matches!(membership.join(&ticket(&other), false), Err(JoinError::OtherSwarm { .. })));
    }
}

#[test]
fn leaving_leads_to_a_swarm_of_ones_own_and_back_by_ticket() {
    let (dir_a, dir_b) = (dir(), dir());
    let (a, mut b) = (open(&dir_a), open(&dir_b));
    b.join(&ticket(&a), false).unwrap();
    let left = b.leave().unwrap();
    assert_eq!(left.from, a.swarm_id());
    assert_ne!(left.to, left.from);
    assert_eq!(open(&dir_b).swarm_id(), left.to);
    assert!(open(&dir_b).owner().is_some());
    assert_eq!(b.leave().unwrap(), Left { from: left.to.clone(), to: left.to }, "nobody is there to be left");
    b.join(&ticket(&a), false).unwrap();
    assert_eq!(b.state(), a.state());
}

#[test]
fn a_kick_is_a_removal_and_another_key() {
    let dir = dir();
    let mut a = open(&dir);
    let before = key(&a);
    let change = a.kick(&node(1), &node(2)).unwrap();
    assert_eq!(change.generation(), Generation(1));
    let again = open(&dir);
    assert_eq!(again.state(), a.state());
    assert!(again.is_removed(&node(2)) && !again.is_removed(&node(3)));
    assert_ne!(key(&again), before);
    assert_eq!(again.swarm_id(), SwarmId::of(&a.owner().unwrap().id()), "the swarm stays the same");
    assert!(matches!(a.kick(&node(1), &node(2)), Err(OwnerError::AlreadyRemoved(peer)) if peer == node(2)));
    assert!(matches!(a.kick(&node(1), &node(1)), Err(OwnerError::Oneself)));
}

#[test]
fn only_the_owner_changes_the_swarm_and_the_owner_key_travels() {
    let (dir_a, dir_b) = (dir(), dir());
    let (mut a, mut b) = (open(&dir_a), open(&dir_b));
    b.join(&ticket(&a), false).unwrap();
    assert!(matches!(b.kick(&node(1), &node(2)), Err(OwnerError::NotOwner)));
    assert!(matches!(b.rekey(), Err(OwnerError::NotOwner)));
    assert!(matches!(b.export_owner(), Err(OwnerError::NotOwner)));
    let foreign = OwnerKey::from_secret(&[9; 32]);
    assert!(matches!(b.import_owner(foreign), Err(OwnerError::OtherOwner { .. })));
    let line = a.export_owner().unwrap().to_string();
    b.import_owner(line.parse().unwrap()).unwrap();
    let change = open(&dir_b).rekey().unwrap();
    assert_eq!(change.generation(), Generation(1));
}

#[test]
fn a_change_from_a_peer_is_on_disk_once_it_is_applied() {
    let (dir_a, dir_b) = (dir(), dir());
    let (mut a, mut b) = (open(&dir_a), open(&dir_b));
    b.join(&ticket(&a), false).unwrap();
    let change = a.kick(&node(1), &node(2)).unwrap();
    assert_eq!(b.apply(&change, None).unwrap(), Applied::Nothing);
    assert_eq!(b.apply(&change, Some(&key(&a))).unwrap(), Applied::NewKey);
    assert_eq!(b.apply(&change, Some(&key(&a))).unwrap(), Applied::Nothing);
    assert_eq!(open(&dir_b).state(), a.state());
    assert_eq!((b.ignored().without_key, b.ignored().known), (1, 1));
}

#[test]
fn who_missed_a_change_of_the_key_joins_again_by_a_new_ticket() {
    let (dir_a, dir_b) = (dir(), dir());
    let (mut a, mut b) = (open(&dir_a), open(&dir_b));
    let old = ticket(&a);
    b.join(&old, false).unwrap();
    a.rekey().unwrap();
    let joined = b.join(&ticket(&a), false).unwrap();
    assert!(joined.new_key && joined.from == joined.to);
    assert_eq!(open(&dir_b).state(), a.state());
    let error = b.join(&old, true).unwrap_err();
    assert!(matches!(error, JoinError::OldTicket), "{error}");
    assert_eq!(open(&dir_b).state(), a.state());
    assert!(!b.join(&ticket(&a), false).unwrap().new_key);
}

#[test]
fn the_key_that_members_still_use_is_kept_until_they_were_told() {
    let dir = dir();
    let mut a = open(&dir);
    let first = key(&a);
    assert_eq!(a.previous().unwrap(), None);
    a.rekey().unwrap();
    a.kick(&node(1), &node(2)).unwrap();
    let mut a = open(&dir);
    assert!(a.standing().hand_over_due);
    let kept = Some((Generation(0), first));
    assert_eq!(a.previous().unwrap(), kept, "not the one between, which nobody ever had");
    a.handed_over().unwrap();
    let a = open(&dir);
    assert!(!a.standing().hand_over_due);
    assert_eq!(a.previous().unwrap(), None);
    assert!(!folder(&dir).join("swarm.key.previous").exists());
}

#[test]
fn an_interrupted_change_of_the_key_is_completed() {
    let dir = dir();
    let mut a = open(&dir);
    let old_file = fs::read(folder(&dir).join("swarm.key")).unwrap();
    a.rekey().unwrap();
    let path = folder(&dir);
    // As it is after a power cut between the record and the last rename.
    fs::rename(path.join("swarm.key"), path.join("swarm.key.next")).unwrap();
    fs::write(path.join("swarm.key"), old_file).unwrap();
    let looked_at = Membership::existing(dir.path()).unwrap().unwrap();
    assert_eq!(key(&looked_at), key(&a));
    assert!(path.join("swarm.key.next").exists(), "who only looks changes nothing");
    assert_eq!(key(&open(&dir)), key(&a));
    assert!(!path.join("swarm.key.next").exists());
}

#[test]
fn damage_is_told_with_the_file_and_with_what_to_do() {
    let break_file = |file: &str, content: &str| {
        let dir = dir();
        let path = folder(&dir).join(file);
        fs::write(&path, content).unwrap();
        let message = damage(Membership::open(dir.path()));
        assert!(message.contains(file), "{message}");
        assert_eq!(fs::read_to_string(path).unwrap(), content, "it is left as it is");
        message
    };
    assert!(break_file("membership.json", "{").contains("join again"));
    assert!(break_file("membership.json", "{\"format\": 1}").contains("swarm_id"));
    assert!(break_file("swarm.key", "secret").contains("first line"));
    let other = SwarmKey::from_bytes([1; 32]).to_key_file();
    assert!(break_file("swarm.key", &other).contains("another key than generation 0"));
    assert!(break_file("owner.key", "secret").contains("owner import"));
    assert!(break_file("owner.key", &OwnerKey::from_secret(&[9; 32]).to_string()).contains("another swarm"));

    let dir = dir();
    let path = folder(&dir);
    fs::remove_file(path.join("swarm.key")).unwrap();
    assert!(damage(Membership::open(dir.path())).contains("it is missing"));
    fs::remove_file(path.join("membership.json")).unwrap();
    assert!(damage(Membership::open(dir.path())).contains("it is missing"));
    fs::write(dir.path().join("swarms/current"), "../../etc").unwrap();
    assert!(damage(Membership::open(dir.path())).contains("begin a new swarm"));
}

#[test]
fn a_record_of_a_later_version_is_refused_and_left_alone() {
    let dir = dir();
    let path = folder(&dir).join("membership.json");
    fs::write(&path, "{\"format\": 2, \"swarm\": []}").unwrap();
    let error = Membership::open(dir.path()).unwrap_err();
    assert!(matches!(error, MembershipError::Newer { found: 2, .. }), "{error}");
    assert!(fs::read_to_string(&path).unwrap().contains("format"));
}

#[test]
fn a_record_cannot_be_made_out_to_remove_somebody() {
    let dir = dir();
    let mut a = open(&dir);
    a.kick(&node(1), &node(2)).unwrap();
    let path = folder(&dir).join("membership.json");
    let forged = fs::read_to_string(&path).unwrap().replace(node(2).as_str(), node(3).as_str());
    fs::write(&path, forged).unwrap();
    assert!(damage(Membership::open(dir.path())).contains("not signed by the owner"));
}

#[test]
fn a_damaged_list_of_peers_costs_only_the_list() {
    let dir = dir();
    fs::write(folder(&dir).join("peers.json"), "[1]").unwrap();
    assert!(open(&dir).read_known().addresses().is_empty());
}

#[test]
fn fields_of_later_versions_are_ignored() {
    let dir = dir();
    let a = open(&dir);
    let path = folder(&dir).join("membership.json");
    let newer = fs::read_to_string(&path).unwrap().replacen('{', "{\n  \"colour\": \"blue\",", 1);
    fs::write(&path, newer).unwrap();
    assert_eq!(open(&dir).state(), a.state());
}

#[test]
fn a_node_without_a_key_has_no_owner_and_leaves_its_closed_swarm_alone() {
    let dir = dir();
    let closed = open(&dir);
    let mut membership = Membership::open_without_key(dir.path()).unwrap();
    assert_eq!((membership.swarm_id(), membership.privacy()), (SwarmId::open(), Privacy::Open));
    assert!(matches!(membership.invite(&no_addresses()), Err(InviteError::Open)));
    assert!(matches!(membership.join(&ticket(&closed), true), Err(JoinError::Open)));
    assert!(matches!(membership.kick(&node(1), &node(2)), Err(OwnerError::Open)));
    membership.mark_used().unwrap();
    assert_eq!(open(&dir).state(), closed.state());
}
