use anyhow::Result;
use clap::Args;

use crate::failure::{Exit, Failure};

/// Where the answer may come from; flags of the commands that ask models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(super) struct ScopeArgs {
    /// Answer on this machine, and nowhere else
    #[arg(long, conflicts_with_all = ["remote", "node"])]
    local: bool,
    /// Answer on another node of the swarm, whichever is best
    #[arg(long, conflicts_with = "node")]
    remote: bool,
    /// Answer on this node: its name, its id, or a beginning of either that no other has
    #[arg(long, value_name = "NODE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    node: Option<String>,
}

impl ScopeArgs {
    /// Builds the scope of one node.
    pub(super) fn of_node(node: impl Into<String>) -> Self {
        Self { node: Some(node.into()), ..Self::default() }
    }

    /// Writes it as the node's API has it; `None`: anywhere.
    pub(super) fn text(&self) -> Option<String> {
        match &self.node {
            Some(node) => Some(format!("node={node}")),
            None if self.remote => Some("remote".to_owned()),
            None => self.local.then(|| "local".to_owned()),
        }
    }

    /// Returns whether this process could not answer itself.
    pub(super) fn asks_for_others(&self) -> bool {
        self.remote || self.node.is_some()
    }

    /// Lets nobody ask for other nodes where none runs that could reach them.
    ///
    /// # Errors
    ///
    /// They are asked for.
    pub(super) fn must_be_here(&self) -> Result<()> {
        if !self.asks_for_others() {
            return Ok(());
        }
        let failure = Failure::new(Exit::Unavailable, "no node runs here, and only a node reaches the others");
        Err(failure.hint("bombus up starts one; without --remote and --node this process answers itself").into())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        scope: ScopeArgs,
    }

    fn scope(flags: &[&str]) -> Option<ScopeArgs> {
        Command::try_parse_from([&["command"], flags].concat()).ok().map(|command| command.scope)
    }

    #[test]
    fn one_of_the_flags_is_taken_and_no_two() {
        for (flags, text) in [
            (&[][..], None),
            (&["--local"], Some("local")),
            (&["--remote"], Some("remote")),
            (&["--node", "hive"], Some("node=hive")),
        ] {
            assert_eq!(scope(flags).unwrap().text().as_deref(), text, "{flags:?}");
        }
        for flags in
            [&["--local", "--remote"][..], &["--local", "--node", "a"], &["--remote", "--node", "a"], &["--node", ""]]
        {
            assert_eq!(scope(flags), None, "{flags:?}");
        }
    }

    #[test]
    fn without_a_node_only_this_process_can_be_asked() {
        assert!(scope(&["--local"]).unwrap().must_be_here().is_ok());
        assert!(scope(&["--remote"]).unwrap().must_be_here().is_err());
        assert!(ScopeArgs::of_node("hive").must_be_here().is_err());
    }
}
