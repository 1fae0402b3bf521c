//! Logs: for people on a terminal, JSON lines everywhere else; to stderr, or to files that are replaced in time.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use tracing_appender::rolling::{RollingFileAppender, Rotation as AppenderRotation};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::{LogConfig, Rotation};

mod batched;

use batched::{BatchedGuard, batched};

/// Writes out what is still buffered when it is dropped.
#[must_use]
pub(crate) struct Telemetry(#[expect(dead_code, reason = "held for their drop")] Vec<BatchedGuard>);

/// Parses `[log] level`.
///
/// # Errors
///
/// Says what could be written.
pub(crate) fn parse_level(text: &str) -> Result<EnvFilter, String> {
    let unknown = || {
        format!(
            "{text:?} is not a log level; write error, warn, info, debug or trace, or directives such as info,bombus_http=debug"
        )
    };
    // A lone word that is no level would otherwise be taken for the name of a module.
    if text.is_empty() || !text.contains(['=', ',']) && text.parse::<LevelFilter>().is_err() {
        return Err(unknown());
    }
    EnvFilter::builder().parse(text).map_err(|_| unknown())
}

/// Adds to a lone level what libraries say at it though it is no news: that a node is alone, for example, or each message for which a peer has no
/// room just now, with the beginning of what is in it.
fn without_chatter(level: &str) -> String {
    let quieter = match level.parse::<LevelFilter>() {
        Ok(LevelFilter::INFO) => ",libp2p_swarm=warn,libp2p_kad=error,libp2p_gossipsub=error",
        Ok(LevelFilter::WARN) => ",libp2p_kad=error,libp2p_gossipsub=error",
        _ => "",
    };
    format!("{level}{quieter}")
}

/// Where requests to backends and lists of their models are logged that failed. A command that asks by itself tells that in its own words.
const TOLD_BY_COMMANDS: &str = "bombus_infer::upstream=off,bombus_infer::openai::answer=off,bombus_infer::ollama::client=off,\
                                bombus_infer::registry::entry=off";

/// Begins logging for the rest of the process.
pub(crate) fn begin(config: &LogConfig, level: &str) -> Result<Telemetry> {
    let on_stderr = if config.file.is_some() { "warn" } else { level };
    start(config, &without_chatter(on_stderr), &without_chatter(level))
}

/// Begins logging for a command that ends by itself, where nobody asked for a level: warnings, but for those on stderr that the command
/// tells anyway.
pub(crate) fn begin_quiet(config: &LogConfig) -> Result<Telemetry> {
    start(config, &quiet_on_stderr(), &without_chatter("warn"))
}

fn quiet_on_stderr() -> String {
    format!("{},{TOLD_BY_COMMANDS}", without_chatter("warn"))
}

/// Begins logging with what stderr gets, and what the file gets where there is one.
fn start(config: &LogConfig, stderr_level: &str, file_level: &str) -> Result<Telemetry> {
    let filter = |level: &str| parse_level(level).map_err(anyhow::Error::msg);
    let mut guards = Vec::new();
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();

    let (stderr, guard) = batched(std::io::stderr()).context("the thread that writes logs cannot start")?;
    guards.push(guard);
    let on_stderr = if std::io::stderr().is_terminal() {
        tracing_subscriber::fmt::layer().with_writer(stderr).with_target(false).boxed()
    } else {
        tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(stderr).boxed()
    };
    layers.push(on_stderr.with_filter(filter(stderr_level)?).boxed());
    if let Some(path) = &config.file {
        let (file, guard) = batched(log_file(config, path)?).context("the thread that writes logs cannot start")?;
        guards.push(guard);
        let in_file = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(file);
        layers.push(in_file.with_filter(filter(file_level)?).boxed());
    }
    tracing_subscriber::registry().with(layers).try_init().context("logging was set up already")?;
    Ok(Telemetry(guards))
}

fn log_file(config: &LogConfig, path: &std::path::Path) -> Result<RollingFileAppender> {
    // A start removes as many files as if it were to begin another one: of one file, that is the log of before.
    let files_max = if config.files_max == 1 { 2 } else { config.files_max };
    let (rotation, files_max) = match config.rotation {
        Rotation::Hourly => (AppenderRotation::HOURLY, files_max),
        Rotation::Daily => (AppenderRotation::DAILY, files_max),
        // There is only one, and nothing to remove.
        Rotation::Never => (AppenderRotation::NEVER, 0),
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let name = path.file_name().with_context(|| format!("log.file {} is not the name of a file", path.display()))?;
    RollingFileAppender::builder()
        .rotation(rotation)
        .filename_prefix(name.to_string_lossy())
        .max_log_files(files_max)
        .build(folder)
        .with_context(|| format!("the log file {} cannot be opened", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn write(folder: &Path, rotation: Rotation, files_max: usize, line: &str) {
        let config = LogConfig { rotation, files_max, ..LogConfig::default() };
        log_file(&config, &folder.join("node.log")).unwrap().write_all(line.as_bytes()).unwrap();
    }

    /// Reads the files of a folder, by their names.
    fn read(folder: &Path) -> BTreeMap<String, String> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        files
            .map(|file| (file.file_name().into_string().unwrap(), std::fs::read_to_string(file.path()).unwrap()))
            .collect()
    }

    #[test]
    fn the_names_of_log_files_tell_when_they_were_begun() {
        for (rotation, form) in [
            (Rotation::Hourly, "node.log.0000-00-00-00"),
            (Rotation::Daily, "node.log.0000-00-00"),
            (Rotation::Never, "node.log"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), rotation, 7, "line\n");
            let files = read(folder.path());
            let names: Vec<&String> = files.keys().collect();
            let [name] = names.as_slice() else { panic!("{names:?}") };
            assert_eq!(name.replace(|character: char| character.is_ascii_digit(), "0"), form, "{name}");
        }
    }

    #[test]
    fn of_many_log_files_no_more_stay_than_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for day in 1..=5 {
            std::fs::write(folder.path().join(format!("node.log.2020-01-0{day}")), "old\n").unwrap();
        }
        std::fs::write(folder.path().join("other.log"), "of another program\n").unwrap();
        write(folder.path(), Rotation::Daily, 0, "all stay\n");
        assert_eq!(read(folder.path()).len(), 7);
        write(folder.path(), Rotation::Never, 1, "all stay\n");
        assert_eq!(read(folder.path()).len(), 8);
        std::fs::remove_file(folder.path().join("node.log")).unwrap();

        write(folder.path(), Rotation::Hourly, 3, "new\n");
        let files = read(folder.path());
        assert_eq!(files.keys().filter(|name| name.starts_with("node.log.")).count(), 3, "{files:?}");
        assert!(files.values().any(|text| text == "new\n") && files.contains_key("other.log"), "{files:?}");
    }

    #[test]
    fn a_start_keeps_the_log_of_the_one_before() {
        for rotation in [Rotation::Hourly, Rotation::Daily, Rotation::Never] {
            for files_max in [0, 1, 2, 7] {
                let folder = tempfile::tempdir().unwrap();
                write(folder.path(), rotation, files_max, "first\n");
                write(folder.path(), rotation, files_max, "second\n");
                let text: String = read(folder.path()).into_values().collect();
                assert_eq!(text, "first\nsecond\n", "{rotation:?}, {files_max}");
            }
        }
    }

    #[test]
    fn directives_are_left_as_they_are_written() {
        for (level, wanted) in [
            ("info", "info,libp2p_swarm=warn,libp2p_kad=error,libp2p_gossipsub=error"),
            ("warn", "warn,libp2p_kad=error,libp2p_gossipsub=error"),
            ("debug", "debug"),
            ("error", "error"),
            ("info,libp2p_kad=debug", "info,libp2p_kad=debug"),
        ] {
            assert_eq!(without_chatter(level), wanted);
            assert!(parse_level(&without_chatter(level)).is_ok(), "{level}");
        }
        assert!(parse_level(&quiet_on_stderr()).is_ok());
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["info", "WARN", "off", "info,bombus_http=debug", "bombus=trace"] {
            assert!(parse_level(good).is_ok(), "{good}");
        }
        for bad in ["infoo", "verbose", "", "bombus=loud"] {
            assert!(parse_level(bad).is_err(), "{bad:?}");
        }
    }
}
