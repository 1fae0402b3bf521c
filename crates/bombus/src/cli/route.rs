use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::answerer::{Answerer, NO_BACKEND, Placement};
use super::scope::ScopeArgs;
use super::{Global, output};

/// Arguments of `bombus route`.
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// The model [default: the node's, or `default_model` of the configuration]
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// Show every backend and every other node with its score, or the reason why it cannot answer
    #[arg(long)]
    explain: bool,
    /// As one JSON object, with every backend
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    scope: ScopeArgs,
}

pub(super) fn run(global: &Global, args: &RouteArgs) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    let placement = super::block_on(async {
        let data_dir = global.data_dir()?;
        let answerer = Answerer::find(&settings, &data_dir).await?;
        let model = args.model.clone().unwrap_or_else(|| answerer.default_model(&settings));
        let placement = answerer.placement(&model, &args.scope).await;
        answerer.stop().await;
        placement
    })?;
    if !args.json && placement.candidates.is_empty() {
        global.notice(NO_BACKEND);
    }
    if args.json {
        output::print_json(&placement)?;
    } else if args.explain {
        output::print(&table(&placement))?;
    }
    let best = placement.best()?;
    if !args.json && !args.explain {
        output::print(&format!("{}  {}\n", best.shown(), best.model.as_deref().unwrap_or(&placement.model)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(placement: &Placement) -> String {
    let rows = placement.candidates.iter().map(|candidate| {
        [
            candidate.shown(),
            candidate.model.clone().unwrap_or_else(|| "-".to_owned()),
            candidate.score.map_or_else(|| "no".to_owned(), |score| format!("{score:.1}")),
            candidate.rejected.clone().unwrap_or_else(|| candidate.reasons.join(", ")),
        ]
    });
    output::table(["BACKEND", "MODEL", "SCORE", "WHY"], rows)
}
