use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cli::Global;
use crate::failure::{Exit, Failure};

/// The unit's name.
pub(super) const NAME: &str = "bombus.service";
/// Where the service of the machine keeps its data.
const SYSTEM_DATA_DIR: &str = "/var/lib/bombus";

/// Whose service it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    /// The user's.
    User,
    /// The machine's.
    System,
}

/// A unit of systemd that runs a node.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) scope: Scope,
    pub(super) data_dir: PathBuf,
    program: PathBuf,
    config: Option<PathBuf>,
    arguments: Vec<String>,
}

impl Scope {
    pub(super) fn of(system: bool) -> Self {
        if system { Self::System } else { Self::User }
    }

    /// Returns the flags by which systemd's programs know it.
    pub(super) fn flags(self) -> &'static [&'static str] {
        match self {
            Self::User => &["--user"],
            Self::System => &["--system"],
        }
    }

    /// Returns the file of the unit.
    pub(super) fn unit_file(self) -> Result<PathBuf> {
        use etcetera::BaseStrategy;
        let folder = match self {
            Self::System => PathBuf::from("/etc/systemd/system"),
            Self::User => {
                let dirs = etcetera::choose_base_strategy().context("this user has no home directory")?;
                dirs.config_dir().join("systemd/user")
            }
        };
        Ok(folder.join(NAME))
    }

    /// Says what people should know when it is installed.
    pub(super) fn afterwards(self) -> &'static str {
        match self {
            Self::User => {
                "it runs while you are logged in; loginctl enable-linger keeps it running without you. Logs: journalctl --user -u bombus"
            }
            Self::System => {
                "its commands need its data directory: sudo bombus --data-dir /var/lib/bombus invite. Logs: journalctl -u bombus"
            }
        }
    }

    /// Says how to get at the other scope's service.
    pub(super) fn other_hint(self) -> &'static str {
        match self {
            Self::User => "with --system it is that of the machine",
            Self::System => "without --system it is that of this user",
        }
    }
}

impl Unit {
    /// Describes the service that runs this program with these flags.
    pub(super) fn of(global: &Global, scope: Scope, arguments: &[String]) -> Result<Self> {
        let program = std::env::current_exe().context("the path of this program is not known")?;
        let absolute = |path: PathBuf| std::path::absolute(&path).with_context(|| format!("{}", path.display()));
        let (chosen, origin) = global.data_dir_path()?;
        let data_dir = match scope {
            Scope::System if origin == "default" => PathBuf::from(SYSTEM_DATA_DIR),
            _ => absolute(chosen)?,
        };
        let config = global.config_file().0.map(absolute).transpose()?;
        let unit = Self { scope, data_dir, program, config, arguments: arguments.to_vec() };
        unit.check()?;
        Ok(unit)
    }

    /// Refuses what a unit file cannot hold.
    fn check(&self) -> Result<()> {
        let paths = [Some(&self.data_dir), Some(&self.program), self.config.as_ref()];
        let texts = paths.into_iter().flatten().map(|path| path.to_string_lossy().into_owned());
        match texts.chain(self.arguments.iter().cloned()).find(|text| text.chars().any(char::is_control)) {
            Some(text) => {
                let message = format!("{text:?} has a character that a unit of systemd cannot hold");
                Err(Failure::new(Exit::Usage, message).into())
            }
            None => Ok(()),
        }
    }

    /// Writes the unit.
    pub(super) fn text(&self) -> String {
        let mut command = vec![word(&self.program.to_string_lossy()), "up".to_owned()];
        command.extend(["--data-dir".to_owned(), word(&self.data_dir.to_string_lossy())]);
        if let Some(config) = &self.config {
            command.extend(["--config".to_owned(), word(&config.to_string_lossy())]);
        }
        command.extend(self.arguments.iter().map(|argument| word(argument)));
        let mut lines: Vec<String> = vec![
            "# Written by `bombus service install`; `bombus service uninstall` takes it away.".to_owned(),
            "[Unit]".to_owned(),
            "Description=Bombus node".to_owned(),
        ];
        if self.scope == Scope::System {
            lines.extend(["Wants=network-online.target".to_owned(), "After=network-online.target".to_owned()]);
        }
        lines.extend([
            String::new(),
            "[Service]".to_owned(),
            "Type=exec".to_owned(),
            format!("ExecStart={}", command.join(" ")),
            "# It lets answers that run come to their end.".to_owned(),
            "TimeoutStopSec=30".to_owned(),
            "Restart=on-failure".to_owned(),
            "RestartSec=2".to_owned(),
            "LimitNOFILE=65536".to_owned(),
            "# A model that is too large for the machine takes down its own process, and not the node.".to_owned(),
            "OOMPolicy=continue".to_owned(),
            "UMask=0077".to_owned(),
        ]);
        lines.extend(self.places());
        lines.extend(HARDENING.iter().map(|line| (*line).to_owned()));
        if self.scope == Scope::System {
            lines.extend(SYSTEM_HARDENING.iter().map(|line| (*line).to_owned()));
        }
        let target = match self.scope {
            Scope::User => "default.target",
            Scope::System => "multi-user.target",
        };
        lines.extend([String::new(), "[Install]".to_owned(), format!("WantedBy={target}"), String::new()]);
        lines.join("\n")
    }

    /// Names where the service may write.
    fn places(&self) -> Vec<String> {
        let data_dir = self.data_dir.to_string_lossy();
        match self.scope {
            Scope::User => vec![format!("ReadWritePaths={}", quoted_path(&data_dir))],
            Scope::System if self.data_dir.as_os_str() == SYSTEM_DATA_DIR => vec![
                "DynamicUser=yes".to_owned(),
                "StateDirectory=bombus".to_owned(),
                "StateDirectoryMode=0700".to_owned(),
            ],
            // A directory that somebody chose belongs to somebody already.
            Scope::System => vec![format!("ReadWritePaths={}", quoted_path(&data_dir))],
        }
    }
}

/// What a node never needs. Where a driver of a GPU may be in the program, it may make code of its own, so that memory may be both written
/// and executed.
const HARDENING: &[&str] = &[
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    #[cfg(not(any(feature = "cuda", feature = "rocm", feature = "vulkan", feature = "metal")))]
    "MemoryDenyWriteExecute=yes",
];

/// What only the machine's manager can take away: a user's own has not got it, and fails where it is told to.
const SYSTEM_HARDENING: &[&str] = &[
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectHome=read-only",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectProc=invisible",
    "RemoveIPC=yes",
];

/// Writes an argument of a command line so that systemd takes it as it is.
fn word(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-:=,@+".contains(character);
    if !text.is_empty() && text.chars().all(plain) { escaped } else { format!("\"{escaped}\"") }
}

/// Writes a path as a setting that is a list of paths takes it: `$` means nothing there.
fn quoted_path(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    if text.contains([' ', '"', '\\', '\'']) { format!("\"{escaped}\"") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(scope: Scope, data_dir: &str) -> Unit {
        Unit {
            scope,
            data_dir: data_dir.into(),
            program: "/opt/my programs/bombus".into(),
            config: Some("/etc/bombus.toml".into()),
            arguments: vec!["--name".into(), "50% $HOME \"x\"".into()],
        }
    }

    #[test]
    fn the_command_line_survives_systemd() {
        let text = unit(Scope::User, "/home/me/.local/share/bombus").text();
        let command = "ExecStart=\"/opt/my programs/bombus\" up --data-dir /home/me/.local/share/bombus \
                       --config /etc/bombus.toml --name \"50%% $$HOME \\\"x\\\"\"\n";
        assert!(text.contains(command), "{text}");
    }

    #[test]
    fn a_user_service_writes_into_its_data_directory_alone() {
        let text = unit(Scope::User, "/home/me/my data").text();
        assert!(text.contains("\nReadWritePaths=\"/home/me/my data\"\n"), "{text}");
        assert!(text.contains("\nProtectSystem=strict\n") && text.contains("\nWantedBy=default.target\n"), "{text}");
        assert!(!text.contains("DynamicUser"), "{text}");
    }

    #[test]
    fn a_system_service_has_a_user_of_its_own() {
        let text = unit(Scope::System, SYSTEM_DATA_DIR).text();
        for line in ["DynamicUser=yes", "StateDirectory=bombus", "WantedBy=multi-user.target", "CapabilityBoundingSet="]
        {
            assert!(text.contains(&format!("\n{line}\n")), "{text}\nlacks {line}");
        }
        let elsewhere = unit(Scope::System, "/srv/bombus").text();
        assert!(
            elsewhere.contains("\nReadWritePaths=/srv/bombus\n") && !elsewhere.contains("DynamicUser"),
            "{elsewhere}"
        );
    }

    #[test]
    fn a_line_break_cannot_reach_a_unit() {
        let evil = Unit { arguments: vec!["a\nExecStartPre=/bin/evil".into()], ..unit(Scope::User, "/d") };
        assert!(evil.check().is_err());
    }
}
