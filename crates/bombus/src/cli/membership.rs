//! `bombus invite`, `join`, `leave`, `kick`, `rekey` and `owner`: who belongs to the swarm. Each works by the running node, or on the data
//! directory where none runs.

use std::io::Read;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bombus_core::identity::NodeId;
use bombus_http::mesh::choose;
use bombus_net::membership::{InviteError, JoinError, KnownPeer, Membership, OwnerError, OwnerKey, SwarmId};
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::mesh::{OnDisk, Place};
use super::{Global, output};
use crate::config::Settings;
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};
use crate::node::own_addresses;
use crate::printable::one_line;

mod join;

pub(super) use join::join;

/// Longest secret that is read from a pipe.
const SECRET_BYTES_MAX: u64 = 4 << 10;

/// Arguments of `bombus invite`.
#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus join`.
#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What `bombus invite` printed on a node of the swarm; - reads it from a pipe
    #[arg(value_name = "TICKET")]
    ticket: String,
    /// Change to the ticket's swarm though this node belongs to another one, whose data stay on disk
    #[arg(long)]
    switch: bool,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus leave`.
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus kick`.
#[derive(Debug, Args)]
pub(crate) struct KickArgs {
    /// Its name, its id, or a beginning of either that no other has
    #[arg(value_name = "PEER")]
    peer: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus rekey`.
#[derive(Debug, Args)]
pub(crate) struct RekeyArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// `bombus owner`.
#[derive(Debug, Subcommand)]
pub(crate) enum OwnerCommand {
    /// Print the owner key, for a safe place or for another machine; it is a secret
    Export {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Take over the owner key of this swarm, so that members can be removed from this machine too
    Import {
        /// What `bombus owner export` printed; - reads it from a pipe
        #[arg(value_name = "KEY")]
        key: String,
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A ticket.
#[derive(Serialize, Deserialize)]
struct Invitation {
    ticket: String,
    swarm_id: String,
    addresses: Vec<String>,
}

/// A change of swarm.
#[derive(Debug, Serialize, Deserialize)]
struct Moved {
    swarm_id: String,
    left: String,
}

/// Who has a change of the key.
#[derive(Debug, Serialize, Deserialize)]
struct Handed {
    generation: u64,
    reached: Vec<Named>,
    missed: Vec<Named>,
    /// Those who are told when the node runs, where it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    waiting: Vec<Named>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    node_id: String,
    hostname: String,
}

pub(super) fn invite(global: &Global, args: &InviteArgs) -> Result<ExitCode> {
    let invitation: Invitation = with_place(global, async |settings, data_dir, place| match place {
        Place::Node(node) => node.post("/mesh/invite", &json!({})).await,
        Place::Disk(mut disk) => {
            let addresses = own_addresses(&settings.config.p2p, data_dir)?;
            let ticket = disk.membership.invite(&addresses).map_err(|error| of_invite(&error))?;
            Ok(Invitation {
                ticket: ticket.to_string(),
                swarm_id: ticket.swarm_id().to_string(),
                addresses: ticket.addresses(),
            })
        }
    })?;
    if args.json {
        output::print_json(&invitation)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&format!("{}\n", invitation.ticket))?;
    global.notice("on the other machine: bombus join TICKET. Whoever has this line can join, so keep it secret");
    if invitation.addresses.iter().all(|address| is_local(address)) {
        global.notice("note: it has no address that other machines reach; start the node with --p2p 0.0.0.0:7891");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn leave(global: &Global, args: &LeaveArgs) -> Result<ExitCode> {
    let moved: Moved = with_place(global, async |_, _, place| match place {
        Place::Node(node) => node.post("/mesh/leave", &json!({})).await,
        Place::Disk(mut disk) => {
            let left = disk.membership.leave().map_err(|error| of_join(&error))?;
            Ok(Moved { swarm_id: left.to.to_string(), left: left.from.to_string() })
        }
    })?;
    if args.json {
        output::print_json(&moved)?;
    } else if moved.swarm_id == moved.left {
        output::print(&format!("nothing to leave: nobody else was ever in the swarm {}\n", moved.left))?;
    } else {
        output::print(&format!("left the swarm {}; this node's own is {}\n", moved.left, moved.swarm_id))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn kick(global: &Global, args: &KickArgs) -> Result<ExitCode> {
    let (handed, by_node) = with_place(global, async |_, data_dir, place| match place {
        Place::Node(node) => Ok((node.post::<Handed>("/mesh/kick", &json!({ "peer": args.peer })).await?, true)),
        Place::Disk(mut disk) => {
            let own = data_dir.node_key()?.node_id();
            let peer = known_member(&disk.membership, &args.peer)?;
            disk.membership.kick(&own, &peer).map_err(|error| of_owner(&error))?;
            Ok((of_disk(&disk), false))
        }
    })?;
    if args.json {
        output::print_json(&handed)?;
    } else {
        output::print(&format!("removed {}; {}", one_line(&args.peer), handed.text(by_node)))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rekey(global: &Global, args: &RekeyArgs) -> Result<ExitCode> {
    let (handed, by_node) = with_place(global, async |_, _, place| match place {
        Place::Node(node) => Ok((node.post::<Handed>("/mesh/rekey", &json!({})).await?, true)),
        Place::Disk(mut disk) => {
            disk.membership.rekey().map_err(|error| of_owner(&error))?;
            Ok((of_disk(&disk), false))
        }
    })?;
    if args.json {
        output::print_json(&handed)?;
    } else {
        output::print(&handed.text(by_node))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn owner(global: &Global, command: &OwnerCommand) -> Result<ExitCode> {
    match command {
        OwnerCommand::Export { json } => {
            let key = with_place(global, async |_, data_dir, place| match place {
                // It never travels over HTTP: API keys open everything there, and this key is more than they are.
                Place::Node(_) => {
                    let membership =
                        Membership::existing(data_dir.root()).context("the swarm's data cannot be read")?;
                    membership
                        .as_ref()
                        .and_then(Membership::owner)
                        .cloned()
                        .ok_or_else(|| of_owner(&OwnerError::NotOwner))
                }
                Place::Disk(mut disk) => disk.membership.export_owner().map_err(|error| of_owner(&error)),
            })?;
            if *json {
                let swarm_id = SwarmId::of(&key.id()).to_string();
                output::print_json(&json!({ "swarm_id": swarm_id, "key": key.to_string() }))?;
            } else {
                output::print(&format!("{key}\n"))?;
            }
            global.notice("with this line anybody can remove members of the swarm; keep it in a safe place");
        }
        OwnerCommand::Import { key, json } => {
            let key = secret(key)?;
            let parsed: OwnerKey = key.trim().parse().map_err(|error: bombus_net::membership::ParseLineError| {
                Failure::new(Exit::Usage, error.to_string())
                    .hint("bombus owner export prints one, on a machine that has it")
            })?;
            let swarm_id = SwarmId::of(&parsed.id()).to_string();
            with_place(global, async |_, _, place| match place {
                Place::Node(node) => node.post::<Value>("/mesh/owner", &json!({ "key": key.trim() })).await.map(drop),
                Place::Disk(mut disk) => disk.membership.import_owner(parsed).map_err(|error| of_owner(&error)),
            })?;
            if *json {
                output::print_json(&json!({ "swarm_id": swarm_id }))?;
            }
            global.notice("this machine has the owner key now: bombus kick and bombus rekey work here");
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Finds where the membership is kept, and does something there.
fn with_place<T>(global: &Global, work: impl AsyncFnOnce(&Settings, &DataDir, Place) -> Result<T>) -> Result<T> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let data_dir = global.data_dir()?;
        let place = Place::find(&data_dir).await?;
        work(&settings, &data_dir, place).await
    })
}

/// Reads a secret from a pipe, so that it stands in no list of processes and no history of a shell.
pub(super) fn secret(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut text).context("stdin cannot be read")?;
    Ok(text)
}

/// Finds a member among those that this machine met before, or takes an id as it is.
fn known_member(membership: &Membership, wanted: &str) -> Result<NodeId> {
    let known: Vec<(String, String)> = membership
        .known_peers()
        .into_iter()
        .map(|peer| (peer.node_id.to_string(), peer.name.unwrap_or_default()))
        .collect();
    let found = choose(wanted, known.iter().map(|(id, name)| (id.as_str(), name.as_str())));
    let id = match found {
        Ok(id) => id,
        Err(error) => match NodeId::parse(wanted) {
            Ok(id) => return Ok(id),
            Err(_) => {
                let hint = "bombus up, then bombus peers shows who is there; a whole id is taken in any case";
                return Err(Failure::new(Exit::NotFound, error.to_string()).hint(hint).into());
            }
        },
    };
    NodeId::parse(id).context("an id that was kept is none")
}

fn of_disk(disk: &OnDisk) -> Handed {
    let membership = &disk.membership;
    let members = membership.known_peers().into_iter().filter(|peer| !membership.is_removed(&peer.node_id));
    let named = |peer: KnownPeer| {
        let node_id = peer.node_id.to_string();
        Named { hostname: peer.name.unwrap_or_else(|| node_id.clone()), node_id }
    };
    let (reached, missed) = (Vec::new(), Vec::new());
    Handed { generation: membership.generation().0, reached, missed, waiting: members.map(named).collect() }
}

impl Handed {
    fn text(&self, by_node: bool) -> String {
        let names = |list: &[Named]| list.iter().map(|named| one_line(&named.hostname)).collect::<Vec<_>>().join(", ");
        let mut text = format!("the swarm's key is changed (number {})\n", self.generation);
        if !by_node {
            text.push_str("no node runs here: the members hear of it when it does (bombus up)\n");
        }
        if !self.waiting.is_empty() {
            text.push_str(&output::wrapped("to be told   ", &names(&self.waiting), output::width()));
            text.push_str("bombus doctor names those that are not reached then\n");
        }
        if !self.reached.is_empty() {
            text.push_str(&output::wrapped("reached      ", &names(&self.reached), output::width()));
        }
        if !self.missed.is_empty() {
            text.push_str(&output::wrapped("not reached  ", &names(&self.missed), output::width()));
            text.push_str("those have to join again, with a new ticket: bombus invite\n");
        }
        text
    }
}

fn is_local(address: &str) -> bool {
    address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/")
}

fn of_invite(error: &InviteError) -> anyhow::Error {
    match error {
        InviteError::Membership(error) => Failure::of_membership(error),
        InviteError::Open | InviteError::Address { .. } => Failure::new(Exit::Usage, error.to_string()),
    }
    .into()
}

fn of_join(error: &JoinError) -> anyhow::Error {
    match error {
        JoinError::Membership(error) => Failure::of_membership(error),
        JoinError::OtherSwarm { .. } | JoinError::OldTicket | JoinError::Open => {
            Failure::new(Exit::Usage, error.to_string())
        }
    }
    .into()
}

fn of_owner(error: &OwnerError) -> anyhow::Error {
    match error {
        OwnerError::Membership(error) => Failure::of_membership(error),
        OwnerError::NotOwner
        | OwnerError::OtherOwner { .. }
        | OwnerError::AlreadyRemoved(_)
        | OwnerError::Oneself
        | OwnerError::TooManyRemoved(_)
        | OwnerError::Open => Failure::new(Exit::Usage, error.to_string()),
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Named {
        Named { node_id: "12D3KooW".into(), hostname: name.into() }
    }

    #[test]
    fn those_who_missed_a_change_are_named_with_what_they_have_to_do() {
        let (reached, missed) = (vec![named("hive")], vec![named("far"), named("off")]);
        let text = Handed { generation: 3, reached, missed, waiting: Vec::new() }.text(true);
        for wanted in ["changed (number 3)", "reached      hive\n", "not reached  far, off\n", "bombus invite"] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        let waiting = vec![named("far"), named("off")];
        let text = Handed { generation: 3, reached: Vec::new(), missed: Vec::new(), waiting }.text(false);
        for wanted in ["bombus up", "to be told   far, off\n", "bombus doctor"] {
            assert!(text.contains(wanted), "{text}\nlacks {wanted:?}");
        }
        assert!(!text.contains("not reached  "), "that is not known yet: {text}");
    }

    #[test]
    fn only_addresses_of_this_machine_are_local() {
        assert!(is_local("/ip4/127.0.0.1/tcp/1") && is_local("/ip6/::1/tcp/1"));
        assert!(!is_local("/ip4/192.0.2.7/tcp/1") && !is_local("/ip6/2001:db8::1/tcp/1"));
    }
}
