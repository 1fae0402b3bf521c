//! `bombus service`: units that systemd takes, and what is done with them, by a program that stands for `systemctl`.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{Finished, Home, finish, mode};
use crate::lab::{Disk, is_program, skip};

/// Writes down what it is asked, and does it; with a file `broken` beside it, it starts nothing.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 1
echo "$*" >> calls
case "$2" in
  enable) [ ! -e broken ] && : > runs ;;
  disable) rm -f runs ;;
  is-enabled) [ -e runs ] && echo enabled || { echo disabled; exit 1; } ;;
  is-active) [ -e runs ] && echo active || { echo inactive; exit 3; } ;;
esac
"#;

/// Finds fault with every unit.
const SYSTEMD_ANALYZE: &str = "#!/bin/sh\necho 'bombus.service:9: odd' >&2\nexit 1\n";

/// A user's place on a machine on which systemd runs, as far as programs can see.
struct Place {
    home: Home,
    run: Disk,
}

impl Place {
    /// Makes one; `None` where this system cannot (the test is skipped).
    async fn new() -> Option<Self> {
        let run = Disk::under(Path::new("/run"), 1).await?;
        std::fs::create_dir_all(run.path().join("systemd/system")).unwrap();
        let place = Self { home: Home::new(""), run };
        std::fs::create_dir_all(place.programs()).unwrap();
        for (name, script) in [("systemctl", SYSTEMCTL), ("systemd-analyze", SYSTEMD_ANALYZE)] {
            let path = place.programs().join(name);
            std::fs::write(&path, script).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        Some(place)
    }

    fn programs(&self) -> PathBuf {
        self.home.path("programs")
    }

    /// Returns the file of the unit.
    fn unit(&self) -> PathBuf {
        self.home.path("config/systemd/user/bombus.service")
    }

    /// Runs `bombus service`.
    async fn service(&self, arguments: &[&str]) -> Finished {
        let mut command = self.home.command(&[&["service"], arguments].concat());
        let path = format!("{}:{}", self.programs().display(), std::env::var("PATH").unwrap());
        finish(self.run.host(command.env("PATH", path))).await
    }

    /// Asserts what `bombus service status --json` says, and its exit code.
    async fn assert_status(&self, code: i32, installed: bool, enabled: bool, active: &str) {
        let finished = self.service(&["status", "--json"]).await;
        let state: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.stderr));
        let wanted = json!({ "unit": self.unit(), "installed": installed, "enabled": enabled, "active": active });
        assert_eq!((finished.code, state), (Some(code), wanted));
        assert_eq!(self.calls(), ["--user is-enabled bombus.service", "--user is-active bombus.service"]);
    }

    /// Returns what `systemctl` was asked since the last look.
    fn calls(&self) -> Vec<String> {
        let path = self.programs().join("calls");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_service_is_installed_seen_and_taken_away() {
    let Some(place) = Place::new().await else { return };
    place.assert_status(3, false, false, "inactive").await;

    let installed = place.service(&["install", "--", "--name", "attic"]).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    assert!(installed.stderr.contains("remarks: bombus.service:9: odd"), "{}", installed.stderr);
    assert_eq!(place.calls(), ["--user daemon-reload", "--user enable --now bombus.service"]);
    let unit = std::fs::read_to_string(place.unit()).unwrap();
    let data_dir = place.home.data_dir();
    assert!(unit.contains(&format!(" up --data-dir {} --name attic\n", data_dir.display())), "{unit}");
    assert_eq!(mode(&data_dir), 0o700, "the service may write there, and nobody else may read");
    place.assert_status(0, true, true, "active").await;
    let shown = place.service(&["status"]).await;
    assert!(shown.stdout.starts_with("active, starts by itself\n"), "{}", shown.stdout);
    assert!(shown.stdout.ends_with("journalctl --user -u bombus.service\n"), "{}", shown.stdout);

    std::fs::remove_file(place.programs().join("runs")).unwrap();
    place.calls();
    place.assert_status(4, true, false, "inactive").await;

    let uninstalled = place.service(&["uninstall"]).await;
    assert_eq!(uninstalled.code, Some(0), "{}", uninstalled.stderr);
    assert_eq!(place.calls(), ["--user disable --now bombus.service", "--user daemon-reload"]);
    assert!(!place.unit().exists() && data_dir.exists(), "the unit alone goes");
    place.assert_status(3, false, false, "inactive").await;
    let again = place.service(&["uninstall"]).await;
    assert_eq!(again.code, Some(3), "{}", again.stderr);
    assert_eq!(place.calls(), [""; 0], "there is nothing to stop");
}

#[tokio::test]
async fn programs_are_told_how_a_service_is_after_each_change() {
    let Some(place) = Place::new().await else { return };
    for (command, installed, active) in [("install", true, "active"), ("uninstall", false, "inactive")] {
        let finished = place.service(&[command, "--json"]).await;
        let state: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.stderr));
        let wanted = json!({ "unit": place.unit(), "installed": installed, "enabled": installed, "active": active });
        assert_eq!((finished.code, state), (Some(0), wanted), "{command}");
    }
}

#[tokio::test]
async fn a_service_that_does_not_start_is_no_success() {
    let Some(place) = Place::new().await else { return };
    std::fs::write(place.programs().join("broken"), "").unwrap();
    let installed = place.service(&["install"]).await;
    assert_eq!(installed.code, Some(1), "{}", installed.stderr);
    for wanted in ["systemctl --user enable --now bombus.service failed", "journalctl --user -u bombus.service"] {
        assert!(installed.stderr.contains(wanted), "{}", installed.stderr);
    }
    place.calls();
    place.assert_status(4, true, false, "inactive").await;
}

#[tokio::test]
async fn without_systemd_a_unit_is_shown_and_nothing_installed() {
    let Some(place) = Place::new().await else { return };
    std::fs::remove_dir_all(place.run.path().join("systemd")).unwrap();
    let refused = place.service(&["install"]).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("systemd does not run on this machine"), "{}", refused.stderr);
    let shown = place.service(&["install", "--print"]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("\n[Service]\n"), "{}", shown.stdout);
    assert_eq!(place.calls(), [""; 0]);
    assert!(!place.unit().exists() && !place.home.data_dir().exists());
}

#[tokio::test]
async fn systemd_accepts_the_units() {
    if !is_program("systemd-analyze") {
        return skip("`systemd-analyze` is missing: this machine has no systemd");
    }
    let home = Home::new("");
    for scope in [&["--data-dir", "/home/me/my data"][..], &["--system"]] {
        let arguments = [&["service", "install", "--print"][..], scope, &["--", "--name", "50% $HOME \"x\""]].concat();
        let mut command = home.command(&arguments);
        command.env_remove("BOMBUS_DATA_DIR");
        let printed = finish(command).await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let unit = home.path("bombus.service");
        std::fs::write(&unit, &printed.stdout).unwrap();
        let mut checker = Command::new("systemd-analyze");
        checker.args(["verify", "--man=no"]).arg(&unit).stdin(Stdio::null()).kill_on_drop(true);
        let checked = finish(checker).await;
        assert!(!checked.stderr.contains("bombus.service"), "{}\n{}", checked.stderr, printed.stdout);
    }
}
