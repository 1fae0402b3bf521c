//! `bombus peers`: the other nodes, and how each is.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{Global, mesh, output};
use crate::node_client::NodeClient;
use crate::printable::one_line;

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Longest name that a column is made for.
const NAME_MAX: usize = 16;

/// Arguments of `bombus peers`.
#[derive(Debug, Args)]
pub(crate) struct PeersArgs {
    /// As one JSON array; with --watch as one on each line
    #[arg(long)]
    json: bool,
    /// Show them again when something changes, until Ctrl-C
    #[arg(long, short)]
    watch: bool,
}

/// A peer as the node tells of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Peer {
    pub(super) node_id: String,
    pub(super) hostname: String,
    pub(super) node_tier: Option<String>,
    pub(super) capabilities: Vec<String>,
    pub(super) gpu_name: Option<String>,
    pub(super) vram_total_mb: u64,
    pub(super) available_models: Vec<String>,
    pub(super) installed: Vec<String>,
    pub(super) last_seen: f64,
    pub(super) version: Option<String>,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) status: Option<String>,
    pub(super) path: Option<String>,
    pub(super) latency_ms: Option<f64>,
    pub(super) running: Option<u32>,
    pub(super) slots: Option<u32>,
    pub(super) cpu_usage_percent: Option<f64>,
    pub(super) clock_skew_ms: Option<i64>,
    pub(super) sharing: Option<Sharing>,
}

/// How a peer stands to requests of this node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Sharing {
    pub(super) paused: bool,
    pub(super) draining: bool,
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) slots: Option<u32>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            node_id: String::new(),
            hostname: String::new(),
            node_tier: None,
            capabilities: Vec::new(),
            gpu_name: None,
            vram_total_mb: 0,
            available_models: Vec::new(),
            installed: Vec::new(),
            last_seen: 0.0,
            version: None,
            state: "unknown".to_owned(),
            reason: None,
            status: None,
            path: None,
            latency_ms: None,
            running: None,
            slots: None,
            cpu_usage_percent: None,
            clock_skew_ms: None,
            sharing: None,
        }
    }
}

pub(super) fn run(global: &Global, args: &PeersArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        if args.watch { watch(&node, args.json).await } else { show_once(global, &node, args.json).await }
    })
}

async fn show_once(global: &Global, node: &NodeClient, json: bool) -> Result<ExitCode> {
    let told: Value = node.get("/peers").await?;
    if json {
        output::print_json(&told)?;
        return Ok(ExitCode::SUCCESS);
    }
    let peers = peers_of(told)?;
    if mesh::tell_left_behind(global, node).await? {
        // Why nobody is there has just been said.
    } else if peers.is_empty() {
        global.notice("no other nodes; bombus invite lets one in, bombus doctor says what was tried to find some");
    }
    output::print(&text(&peers, now_unix_s(), output::width()))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows the peers until nobody reads them any more. A terminal shows the present state, anything else gets what changes.
async fn watch(node: &NodeClient, json: bool) -> Result<ExitCode> {
    let on_terminal = std::io::stdout().is_terminal() && !json;
    let mut watched = output::Watched::default();
    let mut before = None;
    loop {
        let told: Value = node.get("/peers").await?;
        let peers = peers_of(told.clone())?;
        let steady: Vec<Peer> = peers.iter().map(Peer::steady).collect();
        let changed = before.as_ref() != Some(&steady);
        let shown = if json {
            format!("{told}\n")
        } else {
            let text = text(&peers, now_unix_s(), output::width());
            if text.is_empty() { "no other nodes\n".to_owned() } else { text }
        };
        if (changed || on_terminal) && !watched.show(&shown, on_terminal, !json)? {
            return Ok(ExitCode::SUCCESS);
        }
        before = Some(steady);
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn peers_of(told: Value) -> Result<Vec<Peer>> {
    serde_json::from_value(told).context("the node's list of peers is not understood")
}

/// Returns the time as the node tells it.
pub(super) fn now_unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

impl Peer {
    /// Leaves out what is different at every look.
    fn steady(&self) -> Self {
        Self { last_seen: 0.0, latency_ms: None, cpu_usage_percent: None, ..self.clone() }
    }

    fn runs(&self) -> String {
        match (self.running, self.slots) {
            (Some(running), Some(slots)) if slots > 0 => format!("{running}/{slots}"),
            (Some(running), _) => running.to_string(),
            (None, _) => "-".to_owned(),
        }
    }

    /// Writes what does not fit into the table's line.
    fn details(&self, width: usize) -> String {
        let mut text = format!("  {}\n", one_line(&self.node_id));
        let mut line = |name: &str, value: &str| text.push_str(&output::wrapped(&format!("  {name:7} "), value, width));
        match (self.state.as_str(), &self.reason, &self.path) {
            ("alive", _, Some(path)) if path != "direct" => line("path", path),
            ("alive", ..) => {}
            (_, Some(reason), _) if !reason.is_empty() => line("why", &one_line(reason)),
            _ => {}
        }
        if let Some(sharing) = &self.sharing {
            line("shares", &sharing.words());
        }
        if let Some(skew_ms) = self.clock_skew_ms {
            line("clock", &format!("{} compared to this node's: set it right, messages are ignored", skew(skew_ms)));
        }
        if let Some(gpu) = &self.gpu_name {
            line("gpu", &format!("{}, {} MB", one_line(gpu), self.vram_total_mb));
        }
        for (name, list) in [("can", &self.capabilities), ("models", &self.available_models), ("has", &self.installed)]
        {
            if !list.is_empty() {
                line(name, &one_line(&list.join(", ")));
            }
        }
        text
    }
}

impl Sharing {
    /// Says whether it answers for this node, and how much it does for others.
    fn words(&self) -> String {
        let running = match self.slots {
            Some(slots) => format!("{} of {slots} requests at a time", self.running),
            None if self.running == 0 => "idle".to_owned(),
            None => format!("{} requests", self.running),
        };
        let waiting = if self.waiting > 0 { format!(", {} wait", self.waiting) } else { String::new() };
        match (self.draining, self.paused) {
            (true, _) => format!("draining, it is about to go: {running}{waiting}"),
            (false, true) => format!("paused by its owner: {running}{waiting}"),
            (false, false) => format!("{running}{waiting}"),
        }
    }
}

/// Says how far a clock is off.
pub(super) fn skew(skew_ms: i64) -> String {
    let seconds = skew_ms.unsigned_abs() / 1_000;
    let amount = match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3_600),
    };
    format!("{amount} {}", if skew_ms < 0 { "behind" } else { "ahead" })
}

fn short_name(name: &str) -> String {
    let name = one_line(name);
    if name.chars().count() <= NAME_MAX {
        return name;
    }
    name.chars().take(NAME_MAX - 1).chain(['…']).collect()
}

/// Says how long ago something was.
pub(super) fn ago(then_unix_s: f64, now_unix_s: f64) -> String {
    let seconds = (now_unix_s - then_unix_s).max(0.0) as u64;
    match (then_unix_s > 0.0, seconds) {
        (false, _) => "never".to_owned(),
        (_, 0..2) => "now".to_owned(),
        (_, 2..120) => format!("{seconds} s"),
        (_, 120..7_200) => format!("{} min", seconds / 60),
        (_, 7_200..172_800) => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Writes a round trip.
pub(super) fn round_trip(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn text(peers: &[Peer], now_unix_s: f64, width: usize) -> String {
    let rows = peers.iter().map(|peer| {
        [
            short_name(&peer.hostname),
            peer.state.clone(),
            peer.node_tier.clone().unwrap_or_else(|| "-".to_owned()),
            peer.runs(),
            peer.cpu_usage_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.0}%")),
            peer.latency_ms.map_or_else(|| "-".to_owned(), round_trip),
            ago(peer.last_seen, now_unix_s),
            peer.version.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let table = output::table(["NAME", "STATE", "TIER", "RUNS", "CPU", "LATENCY", "SEEN", "VERSION"], rows);
    let mut lines = table.lines();
    let head: String = lines.next().map(|head| format!("{head}\n")).unwrap_or_default();
    lines.zip(peers).fold(head, |text, (line, peer)| text + line + "\n" + &peer.details(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hive() -> Peer {
        Peer {
            node_id: "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".into(),
            hostname: "hive".into(),
            node_tier: Some("specialist".into()),
            capabilities: vec!["gpu_inference".into(), "cpu_inference".into(), "cpu_worker".into(), "storage".into()],
            gpu_name: Some("Test GPU".into()),
            vram_total_mb: 16_368,
            available_models: vec!["qwen3:8b".into(), "smollm2:135m".into()],
            installed: vec!["claude".into()],
            last_seen: 995.0,
            version: Some("0.1.0".into()),
            state: "alive".into(),
            path: Some("direct".into()),
            latency_ms: Some(0.84),
            running: Some(12),
            slots: Some(16),
            cpu_usage_percent: Some(100.0),
            ..Peer::default()
        }
    }

    #[test]
    fn a_peer_has_a_line_and_what_it_can_do_below() {
        let shown = text(&[hive()], 1_000.0, 80);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines[1].split_whitespace().collect::<Vec<_>>().join(" "),
            "hive alive specialist 12/16 100% 0.8 ms 5 s 0.1.0"
        );
        assert_eq!(lines[2], "  12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN");
        assert_eq!(lines[3], "  gpu     Test GPU, 16368 MB");
        assert_eq!(lines[5], "  models  qwen3:8b, smollm2:135m");
    }

    #[test]
    fn who_takes_no_requests_is_told() {
        let told = |sharing| text(&[Peer { sharing: Some(sharing), ..hive() }], 1_000.0, 80);
        let busy = Sharing { running: 2, waiting: 1, slots: Some(4), ..Sharing::default() };
        assert!(told(busy.clone()).contains("  shares  2 of 4 requests at a time, 1 wait\n"));
        assert!(told(Sharing { paused: true, ..Sharing::default() }).contains("  shares  paused by its owner: idle\n"));
        assert!(told(Sharing { draining: true, ..busy }).contains("  shares  draining, it is about to go: 2 of 4"));
    }

    #[test]
    fn eighty_columns_are_enough() {
        let crowded = Peer {
            hostname: "a-machine-with-a-rather-long-name.example".into(),
            available_models: (0..40).map(|number| format!("some-model-{number}:8b")).collect(),
            reason: Some("it did not answer".into()),
            state: "suspect".into(),
            latency_ms: Some(1_234.0),
            last_seen: 0.0,
            version: Some("0.10.12".into()),
            clock_skew_ms: Some(-3_600_000),
            ..hive()
        };
        let shown = text(&[crowded, hive()], 1_000.0, 80);
        for line in shown.lines() {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
        assert!(shown.contains("some-model-39:8b") && shown.contains("60 min behind"), "{shown}");
        assert!(shown.contains("why     it did not answer"), "{shown}");
    }

    #[test]
    fn what_a_peer_has_not_told_is_a_dash() {
        let shown = text(&[Peer { hostname: "x".into(), ..Peer::default() }], 1_000.0, 80);
        let line: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line.join(" "), "x unknown - - - - never -");
    }

    #[test]
    fn no_peer_controls_the_terminal() {
        let evil = Peer { hostname: "a\u{1b}[2Jb".into(), available_models: vec!["m\u{7}\n".into()], ..hive() };
        let shown = text(&[evil], 0.0, 80);
        assert!(!shown.chars().any(|character| character.is_control() && character != '\n'), "{shown:?}");
    }

    #[test]
    fn times_are_told_in_the_unit_that_fits() {
        for (then, wanted) in
            [(999.5, "now"), (990.0, "10 s"), (700.0, "5 min"), (-20_000.0, "never"), (1_005.0, "now")]
        {
            assert_eq!(ago(then, 1_000.0), wanted);
        }
        assert_eq!(ago(1.0, 200_000.0), "2 d");
        assert_eq!((skew(-90_000), skew(7_200_000)), ("90 s behind".to_owned(), "2 h ahead".to_owned()));
    }

    #[test]
    fn what_changes_at_every_look_is_no_news() {
        let later = Peer { last_seen: 999.0, latency_ms: Some(2.0), cpu_usage_percent: Some(3.0), ..hive() };
        assert_eq!(later.steady(), hive().steady());
        assert_ne!(Peer { running: Some(1), ..hive() }.steady(), hive().steady());
    }
}
