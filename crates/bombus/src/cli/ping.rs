//! `bombus ping`: how long a peer takes to answer, and which way the answer takes.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::peers::round_trip;
use super::{Global, mesh, output};
use crate::failure::{Exit, Failure, message_of};
use crate::node_client::{NodeClient, Refusal, encoded};
use crate::printable::one_line;

/// Time between two pings.
const PAUSE: Duration = Duration::from_millis(250);

/// Arguments of `bombus ping`.
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// Its name, its id, or a beginning of either that no other has
    #[arg(value_name = "PEER")]
    peer: String,
    /// How often
    #[arg(long, short, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// What the node tells of one ping.
#[derive(Debug, Clone, Deserialize)]
struct Pong {
    node_id: String,
    hostname: String,
    round_trip_ms: f64,
    path: String,
    via: String,
}

/// All pings together.
#[derive(Debug, Default, Serialize)]
struct Summary {
    node_id: Option<String>,
    hostname: Option<String>,
    /// `direct` or `relayed`, of the last answer.
    path: Option<String>,
    /// The peer's address, or the node that relays.
    via: Option<String>,
    round_trips_ms: Vec<f64>,
    lost: u32,
}

pub(super) fn run(global: &Global, args: &PingArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let (summary, trouble) = super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        ping(&node, args).await
    })?;
    if args.json {
        output::print_json(&summary)?;
    } else if let Some(line) = summary.line() {
        output::print(&line)?;
    }
    match trouble {
        Some(reason) if summary.round_trips_ms.is_empty() => {
            let message = format!("{} does not answer: {reason}", one_line(&args.peer));
            Err(Failure::new(Exit::Unavailable, message).hint("bombus doctor says what was tried").into())
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Pings as often as it was asked to. Returns also why the last one that was lost had no answer.
async fn ping(node: &NodeClient, args: &PingArgs) -> Result<(Summary, Option<String>)> {
    let path = format!("/mesh/ping/{}", encoded(&args.peer));
    let mut summary = Summary::default();
    let mut trouble = None;
    for number in 0..args.count {
        if number > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        match node.get::<Pong>(&path).await {
            Ok(pong) => {
                if !args.json && !output::print_piece(&pong.line())? {
                    break;
                }
                summary.take(pong);
            }
            // That the name fits nobody, or several, is no loss.
            Err(error) if !is_loss(&error) => return Err(error),
            Err(error) => {
                let reason = message_of(&error);
                if !args.json && !output::print_piece(&format!("lost: {}\n", one_line(&reason)))? {
                    break;
                }
                summary.lost += 1;
                trouble = Some(reason);
            }
        }
    }
    Ok((summary, trouble))
}

fn is_loss(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code.as_deref() == Some("peer_unreachable"))
}

impl Pong {
    fn line(&self) -> String {
        let way =
            if self.path == "direct" { format!("direct, {}", self.via) } else { format!("relayed by {}", self.via) };
        one_line(&format!("{}: {}, {way}", self.hostname, round_trip(self.round_trip_ms))) + "\n"
    }
}

impl Summary {
    fn take(&mut self, pong: Pong) {
        self.node_id = Some(pong.node_id);
        self.hostname = Some(pong.hostname);
        self.path = Some(pong.path);
        self.via = Some(pong.via);
        self.round_trips_ms.push(pong.round_trip_ms);
    }

    fn line(&self) -> Option<String> {
        let mut sorted = self.round_trips_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (sorted.first()?, sorted.last()?);
        let median = sorted[sorted.len() / 2];
        let sent = sorted.len() + self.lost as usize;
        Some(format!(
            "{} of {sent} answered; least {}, median {}, most {}\n",
            sorted.len(),
            round_trip(*least),
            round_trip(median),
            round_trip(*most)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pong(round_trip_ms: f64, path: &str) -> Pong {
        Pong {
            node_id: "12D3KooW".into(),
            hostname: "hive".into(),
            round_trip_ms,
            path: path.into(),
            via: "/ip4/192.0.2.8/tcp/7891".into(),
        }
    }

    #[test]
    fn each_answer_says_which_way_it_took() {
        assert_eq!(pong(0.84, "direct").line(), "hive: 0.8 ms, direct, /ip4/192.0.2.8/tcp/7891\n");
        assert!(pong(42.0, "relayed").line().starts_with("hive: 42 ms, relayed by "));
    }

    #[test]
    fn the_summary_counts_what_was_lost() {
        let mut summary = Summary { lost: 1, ..Summary::default() };
        assert_eq!(summary.line(), None);
        for round_trip_ms in [3.0, 1.0, 20.0] {
            summary.take(pong(round_trip_ms, "direct"));
        }
        assert_eq!(summary.line().unwrap(), "3 of 4 answered; least 1.0 ms, median 3.0 ms, most 20 ms\n");
    }
}
