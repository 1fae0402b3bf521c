//! A terminal with a program in it, as a person has.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::harness::{LIMIT, take_environment, within};

/// Ctrl-C and Ctrl-D.
pub(crate) const CTRL_C: &str = "\x03";
pub(crate) const CTRL_D: &str = "\x04";

/// A program in a terminal of 24 rows and 80 columns.
pub(crate) struct Terminal {
    child: Child,
    keyboard: File,
    screen: watch::Receiver<String>,
    seen: usize,
}

impl Terminal {
    /// Starts a prepared command with the terminal as its stdin, stdout, stderr and controlling terminal.
    pub(crate) fn start(prepared: &Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let stdio = || Stdio::from(slave.try_clone().unwrap());

        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(prepared.as_std().get_program()).args(prepared.as_std().get_args());
        if let Some(folder) = prepared.as_std().get_current_dir() {
            command.current_dir(folder);
        }
        take_environment(&mut command, prepared);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR").kill_on_drop(true);
        let child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().unwrap();
        drop(slave);
        Self { child, keyboard: File::from(master.try_clone().unwrap()), screen: read(master), seen: 0 }
    }

    /// Types.
    pub(crate) fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line.
    pub(crate) fn enters(&mut self, line: &str) {
        self.types(&format!("{line}\r"));
    }

    /// Waits until this text has come, behind what earlier calls waited for.
    pub(crate) async fn shows(&mut self, wanted: &str) {
        let seen = self.seen;
        let came = self.screen.wait_for(|screen| screen[seen..].contains(wanted));
        let Ok(Ok(screen)) = timeout(LIMIT, came).await else {
            panic!("the terminal lacks {wanted:?}: {:?}", &self.screen.borrow()[seen..]);
        };
        self.seen = seen + screen[seen..].find(wanted).unwrap() + wanted.len();
    }

    /// Returns all that came.
    pub(crate) fn screen(&self) -> String {
        self.screen.borrow().clone()
    }

    /// Returns the lines that are left of all that came, empty ones apart, where the program took back no line but the one that it was in.
    pub(crate) fn lines(&self) -> Vec<String> {
        let screen = self.screen();
        let left = screen.lines().map(|line| line.rsplit_once("\r\x1b[2K").map_or(line, |(_, left)| left).trim_end());
        left.filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// Waits for the program to end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        within("the end of the program", self.child.wait()).await.unwrap()
    }
}

/// Collects what the program writes, on a thread that ends with the terminal's last user.
fn read(master: OwnedFd) -> watch::Receiver<String> {
    let (sender, screen) = watch::channel(String::new());
    std::thread::spawn(move || {
        let mut master = File::from(master);
        let mut bytes = [0; 4096];
        let mut rest = Vec::new();
        while let Ok(count @ 1..) = master.read(&mut bytes) {
            rest.extend_from_slice(&bytes[..count]);
            // A character may be cut in two.
            let whole = std::str::from_utf8(&rest).map_or_else(|error| error.valid_up_to(), str::len);
            let text = String::from_utf8_lossy(&rest[..whole]).into_owned();
            rest.drain(..whole);
            sender.send_modify(|screen| screen.push_str(&text));
        }
    });
    screen
}
