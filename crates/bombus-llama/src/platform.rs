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
