//! What differs between operating systems.

use std::process::ExitStatus;

/// Ends this process in the middle of whatever its other threads do, without running C++ destructors under their feet.
pub(crate) fn end_process() -> ! {
    #[cfg(unix)]
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::process::abort()
}

/// Gives a command the name under which process lists show it, where the program's path says nothing.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has such names"))]
pub(crate) fn name_process(command: &mut tokio::process::Command, name: &str) {
    #[cfg(unix)]
    command.arg0(name);
}

/// Starts a command in a process group of its own, so that Ctrl-C in a terminal reaches its parent alone.
#[cfg_attr(not(unix), expect(unused_variables, reason = "only Unix has process groups"))]
pub(crate) fn keep_from_terminal(command: &mut tokio::process::Command) {
    #[cfg(unix)]
    command.process_group(0);
}

/// Lets this process live on when it is asked to terminate: service managers ask all processes of a service at once, and an engine has
/// to finish the answers for which its node waits. It ends with its node in any case.
///
/// # Errors
///
/// Any error of the system.
pub(crate) fn outlive_termination() -> std::io::Result<()> {
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGTERM, std::sync::Arc::default())?;
    Ok(())
}

/// Says how a process ended, as the end of a sentence that begins with its name.
pub(crate) fn describe_exit(status: ExitStatus) -> String {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        match status.signal() {
            Some(9) => return "was killed (signal 9; the system does that when memory runs out)".to_owned(),
            Some(signal) => return format!("died of signal {signal}"),
            None => {}
        }
    }
    format!("ended ({status})")
}
