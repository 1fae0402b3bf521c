//! Everything that differs between operating systems. Other modules hold no `cfg(unix)`.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::path::Path;

use tokio::sync::{mpsc, oneshot};

/// Requests are many small pieces of memory, of which glibc's allocator keeps most when a crowd has gone; this one gives them back to the
/// system within seconds.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Makes a directory and its missing parents; on Unix the new ones are open to the owner alone.
pub(crate) fn create_private_dir(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Returns the permission bits that let others than the owner at a file, or `None` where there are none, or where permission bits
/// do not exist.
pub(crate) fn open_to_others(path: &Path) -> io::Result<Option<u32>> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path)?.permissions());
        Ok((mode & 0o077 != 0).then_some(mode & 0o777))
    }
    #[cfg(not(unix))]
    {
        std::fs::metadata(path).map(|_| None)
    }
}

/// Takes everyone else's rights to a file away, where permission bits exist.
pub(crate) fn close_to_others(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    let permissions: Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    #[cfg(not(unix))]
    let permissions: Permissions = std::fs::metadata(path)?.permissions();
    std::fs::set_permissions(path, permissions)
}

/// Says whether a file is there that may be run.
pub(crate) fn is_program(path: &Path) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    #[cfg(unix)]
    let may_run = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0;
    #[cfg(not(unix))]
    let may_run = true;
    metadata.is_file() && may_run
}

/// Returns this very program. Its file may have been replaced by another version since it was started, so on Linux the kernel is asked
/// and not the name.
#[cfg(feature = "embedded")]
pub(crate) fn own_program() -> io::Result<std::path::PathBuf> {
    #[cfg(target_os = "linux")]
    {
        let kernel_link = Path::new("/proc/self/exe");
        if kernel_link.exists() {
            return Ok(kernel_link.to_owned());
        }
    }
    std::env::current_exe()
}

/// Says whether this process has the rights of the machine's administrator; where that has no meaning, no.
pub(crate) fn is_root() -> bool {
    #[cfg(unix)]
    {
        rustix::process::geteuid().is_root()
    }
    #[cfg(not(unix))]
    {
        false
    }
}

/// Says whether a process with this id exists. Where that cannot be found out the answer is yes.
pub(crate) fn process_exists(pid: u32) -> bool {
    #[cfg(unix)]
    {
        let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return false };
        // A process of another user answers EPERM: it exists.
        !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    }
    #[cfg(not(unix))]
    {
        let _ = pid;
        true
    }
}

/// Raises the number of files and connections that this process may have open to the most that it may set by itself, and returns
/// it; `None` where there is no such limit. Many systems begin with 1,024, and each connection takes one.
pub(crate) fn raise_open_files_max() -> io::Result<Option<u64>> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
        Ok(maximum)
    }
    #[cfg(not(unix))]
    {
        Ok(None)
    }
}

/// A request from outside to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// Ctrl-C.
    Interrupt,
    /// What service managers send.
    Terminate,
}

impl StopSignal {
    /// The exit code by which shells show that a signal ended a process.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// Listens for [`StopSignal`]s from its creation on.
pub(crate) struct StopSignals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
    #[cfg(windows)]
    terminate: tokio::signal::windows::CtrlShutdown,
}

impl StopSignals {
    /// Replaces the default action of the signals, which is to end the process.
    #[cfg(unix)]
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Replaces the default action of the signals, which is to end the process.
    #[cfg(windows)]
    pub(crate) fn listen() -> io::Result<Self> {
        use tokio::signal::windows;
        Ok(Self { interrupt: windows::ctrl_c()?, terminate: windows::ctrl_shutdown()? })
    }

    /// Waits for the next one. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal::Interrupt,
            _ = self.terminate.recv() => StopSignal::Terminate,
        }
    }
}

/// Listens for [`StopSignal`]s on a thread of its own. The first goes to whoever waits for it; the second ends the program, even
/// where a terminal or a pipe that nobody reads holds up everything else.
pub(crate) struct PatientStop {
    first: oneshot::Receiver<StopSignal>,
}

impl PatientStop {
    /// Replaces the default action of the signals, which is to end the process.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut signals = {
            let _entered = runtime.enter();
            StopSignals::listen()?
        };
        let (sender, first) = oneshot::channel();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                let signal = signals.next().await;
                tracing::debug!(?signal, "stopping; another one ends the program at once");
                // A receiver that is gone has ended the answer already.
                let _ = sender.send(signal);
                std::process::exit(signals.next().await.exit_code().into());
            })
        })?;
        Ok(Self { first })
    }

    /// Waits for the first signal.
    pub(crate) async fn first(&mut self) -> StopSignal {
        match (&mut self.first).await {
            Ok(signal) => signal,
            // The thread waits for a second signal after it has sent the first, so the channel closes only if the thread fails.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Listens for [`StopSignal`]s on a thread of its own, again and again. One that comes while the one before waits to be taken ends the
/// program, even where a terminal or a pipe that nobody reads holds up everything else.
pub(crate) struct RepeatedStop {
    signals: mpsc::Receiver<StopSignal>,
}

impl RepeatedStop {
    /// Replaces the default action of the signals, which is to end the process.
    pub(crate) fn listen() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut waiting = {
            let _entered = runtime.enter();
            StopSignals::listen()?
        };
        let (sender, signals) = mpsc::channel(1);
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    let signal = waiting.next().await;
                    tracing::debug!(?signal, "interrupted; another one before this has its effect ends the program");
                    if sender.try_send(signal).is_err() {
                        std::process::exit(signal.exit_code().into());
                    }
                }
            })
        })?;
        Ok(Self { signals })
    }

    /// Waits for the next one. Safe to drop and call again.
    pub(crate) async fn next(&mut self) -> StopSignal {
        match self.signals.recv().await {
            Some(signal) => signal,
            // The thread goes on for ever unless it fails.
            None => std::future::pending().await,
        }
    }
}

/// How the terminal on stdin was set up before a line editor changed it.
pub(crate) struct TerminalMode {
    #[cfg(unix)]
    saved: Option<rustix::termios::Termios>,
}

impl TerminalMode {
    /// Remembers the mode that holds; nothing where stdin is no terminal.
    pub(crate) fn save() -> Self {
        Self {
            #[cfg(unix)]
            saved: rustix::termios::tcgetattr(io::stdin()).ok(),
        }
    }

    /// Sets the terminal up as it was, for the case that an editor is left in the middle of a line.
    pub(crate) fn restore(&self) {
        #[cfg(unix)]
        if let Some(saved) = &self.saved {
            let now = rustix::termios::OptionalActions::Now;
            if let Err(error) = rustix::termios::tcsetattr(io::stdin(), now, saved) {
                tracing::debug!(%error, "the terminal's mode could not be set back");
            }
        }
    }
}
