//! What a failed command tells people and scripts: the only place that makes exit codes out of errors.

use std::fmt;
use std::process::ExitCode;
use std::time::Duration;

use bombus_http::HttpError;
use bombus_infer::BackendError;
use bombus_net::NetError;
use bombus_net::membership::MembershipError;

use crate::config::ConfigError;
use crate::data_dir::DataDirError;
use crate::node_client::Refusal;
use crate::printable;

/// Exit codes of every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed.
    Failure = 1,
    /// Flags or configuration are wrong; the same command will fail again. clap uses this code too.
    Usage = 2,
    /// The model, key or file that was named does not exist.
    NotFound = 3,
    /// The node, the backend or a remote service does not answer now; trying again may help.
    Unavailable = 4,
    /// The machine answers, and nothing listens at the port.
    NothingListens = 10,
    /// A node of another swarm is there.
    AnotherSwarm = 11,
    /// This node's identity is there.
    SameIdentity = 12,
    /// A clock is too far off.
    ClockOff = 13,
    /// Nothing comes back: a firewall, or a machine that is off.
    Filtered = 14,
    /// Only IPv6 leads there, and this machine has none.
    OnlyIpv6 = 15,
    /// This node was removed from the swarm, or missed a change of its key.
    Outdated = 16,
    /// Another node than the expected one is there.
    AnotherNode = 17,
    /// No node is there, but something else.
    NotANode = 18,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error whose exit code or remedy is known where it is found.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Says what is wrong.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Translates why a backend did not answer.
    pub(crate) fn of_backend(error: &BackendError) -> Self {
        let failure = |exit| Self::new(exit, error.to_string());
        match error {
            BackendError::ModelNotFound { model } => failure(Exit::NotFound)
                .hint(format!("bombus models pull {model}; bombus models catalogue shows what can be had")),
            BackendError::ContextExceeded { .. }
            | BackendError::InvalidRequest { .. }
            | BackendError::Unsupported { .. } => failure(Exit::Usage),
            BackendError::Overloaded { retry_after } => Self::overloaded(*retry_after),
            BackendError::Rejected { .. }
            | BackendError::Unavailable { .. }
            | BackendError::Interrupted { .. }
            | BackendError::TimedOut { .. } => failure(Exit::Unavailable).hint("bombus doctor says what is wrong here"),
            BackendError::OutOfMemory { .. } | BackendError::ModelUnusable { .. } | BackendError::DeadEnd { .. } => {
                failure(Exit::Failure)
            }
        }
    }

    /// Says when to try again: a server asked for less, or all slots here are taken.
    fn overloaded(retry_after: Duration) -> Self {
        let seconds = retry_after.as_secs_f64().ceil();
        let message = format!("all backends of this model have too much to do; try again in {seconds} s");
        Self::new(Exit::Unavailable, message).hint("bombus backends shows how they are")
    }

    /// Translates what the running node refused.
    fn of_refusal(refusal: &Refusal) -> Self {
        if let Some(model) = refusal.missing_model() {
            return Self::of_backend(&BackendError::ModelNotFound { model: model.to_owned() });
        }
        if let (Some("overloaded"), Some(retry_after)) = (refusal.code.as_deref(), refusal.retry_after) {
            return Self::overloaded(retry_after);
        }
        let failure = |exit| Self::new(exit, refusal.message.clone());
        match (refusal.status, refusal.code.as_deref()) {
            (403, Some("not_admitted")) => {
                failure(Exit::Failure).hint("bombus db info DATABASE shows who may write, and who grants it")
            }
            (404, Some("database_not_found")) => failure(Exit::NotFound)
                .hint("bombus db list shows which there are; one of another node is opened by its address: bombus db open"),
            (409, Some("database_closed")) => failure(Exit::Usage).hint("bombus db open DATABASE opens it again"),
            (504, Some("database_unreachable")) => failure(Exit::Unavailable)
                .hint("bombus peers shows who is connected; one of them has to have the database open"),
            (404, Some("task_not_found")) => failure(Exit::NotFound)
                .hint("bombus tasks shows those that this node knows; one that was submitted elsewhere just now is here in a moment"),
            (409, Some("task_exists")) | (422, Some("idempotency_key_reused")) => {
                failure(Exit::Usage).hint("take another key, or none")
            }
            (401 | 403, _) => failure(Exit::Failure).hint(
                "the node does not take the key in its data directory: it may have been started again just now; ask again",
            ),
            (404, Some("peer_not_found")) => failure(Exit::NotFound).hint("bombus peers shows who is there"),
            (404, _) => failure(Exit::NotFound),
            (400..=428, _) => failure(Exit::Usage),
            (_, Some("model_unusable" | "out_of_memory" | "dead_end")) => failure(Exit::Failure),
            _ => failure(Exit::Unavailable).hint("bombus doctor says what is wrong here"),
        }
    }

    fn of_config(error: &ConfigError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }

    fn of_data_dir(error: &DataDirError) -> Self {
        let failure = |exit, hint: &str| Self::new(exit, chain(error)).hint(hint);
        match error {
            DataDirError::Io { .. } => {
                failure(Exit::Failure, "--data-dir DIR or BOMBUS_DATA_DIR names another directory")
            }
            DataDirError::Newer { .. } => {
                failure(Exit::Usage, "use the version of bombus that wrote it, or another directory: --data-dir DIR")
            }
            DataDirError::Damaged { .. } => failure(Exit::Failure, "bombus doctor checks the rest of the directory"),
            DataDirError::InUse { .. } => {
                failure(Exit::Failure, "stop that node, or give this one a directory of its own: --data-dir DIR")
            }
        }
    }

    fn of_net(error: &NetError) -> Self {
        let failure = Self::new(Exit::Failure, error.to_string());
        match error {
            NetError::PortTaken { .. } | NetError::Listen { .. } => {
                failure.hint("bombus up --p2p ADDR:PORT listens elsewhere, with port 0 on a free port; bombus doctor says who is there")
            }
            NetError::InvalidAddress { .. } => Self::new(Exit::Usage, error.to_string()),
            _ => failure,
        }
    }

    /// Translates why the swarm's data cannot be used or changed.
    pub(crate) fn of_membership(error: &MembershipError) -> Self {
        let exit = match error {
            MembershipError::Newer { .. } => Exit::Usage,
            MembershipError::Stopped => Exit::Unavailable,
            MembershipError::Io { .. } | MembershipError::Damaged { .. } | MembershipError::Random(_) => Exit::Failure,
        };
        Self::new(exit, chain(error))
    }

    fn of_http(error: &HttpError) -> Self {
        let failure = Self::new(Exit::Failure, error.to_string());
        match error {
            HttpError::NoKeys { .. } => {
                failure.hint("bombus keys create NAME, or listen on this machine alone: --api 127.0.0.1:7890")
            }
            HttpError::Listen { .. } => {
                failure.hint("bombus doctor says who has the port; --api 127.0.0.1:0 takes a free one")
            }
            HttpError::Keys(_) | HttpError::BadOrigin { .. } => failure,
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            let known = cause
                .downcast_ref::<Self>()
                .map(|failure| Self {
                    exit: failure.exit,
                    message: failure.message.clone(),
                    hint: failure.hint.clone(),
                })
                .or_else(|| cause.downcast_ref::<BackendError>().map(Self::of_backend))
                .or_else(|| cause.downcast_ref::<Refusal>().map(Self::of_refusal))
                .or_else(|| cause.downcast_ref::<ConfigError>().map(Self::of_config))
                .or_else(|| cause.downcast_ref::<DataDirError>().map(Self::of_data_dir))
                .or_else(|| cause.downcast_ref::<HttpError>().map(Self::of_http))
                .or_else(|| cause.downcast_ref::<NetError>().map(Self::of_net))
                .or_else(|| cause.downcast_ref::<MembershipError>().map(Self::of_membership));
            if let Some(known) = known {
                return known;
            }
        }
        Self::new(Exit::Failure, format!("{error:#}"))
    }

    /// Lays it out for a terminal, which the words of servers and of other nodes in it cannot control.
    fn lines(&self) -> String {
        let hint = self.hint.as_ref().map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        printable::lines(&format!("error: {}\n{hint}", self.message)).into_owned()
    }
}

/// Joins an error with its causes, leaving out a cause that the text before it says already.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Writes `error: ...` and `hint: ...` to stderr and returns the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let failure = Failure::of(error);
    eprint!("{}", failure.lines());
    failure.exit.into()
}

/// Says in one text what [`report`] would, for a table or a JSON object.
pub(crate) fn message_of(error: &anyhow::Error) -> String {
    Failure::of(error).message
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_missing_model_is_told_apart_under_any_context() {
        let error = Err::<(), _>(BackendError::ModelNotFound { model: "m".into() }).context("asking").unwrap_err();
        let failure = Failure::of(&error);
        assert_eq!((failure.exit, failure.message.as_str()), (Exit::NotFound, "model 'm' not found"));
        assert!(failure.hint.unwrap().starts_with("bombus models pull m"));
    }

    #[test]
    fn who_has_too_much_to_do_says_when_to_try_again() {
        let here = anyhow::Error::from(BackendError::Overloaded { retry_after: Duration::from_millis(6_200) });
        let refusal = Refusal {
            status: 429,
            code: Some("overloaded".to_owned()),
            message: "too many requests are waiting".to_owned(),
            retry_after: Some(Duration::from_secs(7)),
        };
        for error in [here, refusal.into()] {
            let failure = Failure::of(&error);
            let told = (failure.exit, failure.message.as_str(), failure.hint.as_deref());
            let message = "all backends of this model have too much to do; try again in 7 s";
            assert_eq!(told, (Exit::Unavailable, message, Some("bombus backends shows how they are")));
        }
    }

    #[test]
    fn an_unknown_error_keeps_its_whole_chain() {
        let error = anyhow::anyhow!("disk full").context("writing");
        assert_eq!(Failure::of(&error).message, "writing: disk full");
    }

    #[test]
    fn what_a_server_says_cannot_control_the_terminal() {
        let message = "bad \u{1b}[31mRED\u{1b}[2J\nthing\r";
        let error = BackendError::InvalidRequest { param: None, message: message.to_owned() };
        let shown = Failure::of_backend(&error).hint("try\u{7} again").lines();
        assert!(shown.contains("bad [31mRED[2J\nthing\nhint: try again\n"), "{shown:?}");
        assert!(shown.chars().all(|character| character == '\n' || !character.is_control()), "{shown:?}");
    }
}
