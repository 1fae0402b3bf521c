use std::path::PathBuf;

/// What a person can do besides talking.
pub(super) const HELP: &str = "\
/model [NAME]   show the models, or go on with another one
/system [TEXT]  show the system message, or set it; /system - removes it
/clear          forget the conversation
/save FILE      write the conversation to a file
/load FILE      go on with a conversation from a file
/help           this list
/quit           end; Ctrl-D does too
\"\"\" begins and ends a text of several lines; // begins a text that starts with a slash
Ctrl-C stops the answer; twice, it ends the chat";

/// Names of the commands, for completion.
pub(super) const NAMES: [&str; 7] = ["/clear", "/help", "/load", "/model", "/quit", "/save", "/system"];

/// Opens and closes a text of several lines.
const QUOTES: &str = "\"\"\"";

/// What a person said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    /// Something for the model.
    Say(String),
    Help,
    ShowModel,
    UseModel(String),
    ShowSystem,
    /// Sets the system message, or removes it.
    SetSystem(Option<String>),
    Clear,
    Save(PathBuf),
    Load(PathBuf),
    Quit,
}

impl Command {
    /// Reads what was said; `None` where that is nothing.
    ///
    /// # Errors
    ///
    /// Says what is wrong with a command.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        let trimmed = text.trim();
        if let Some(quoted) = unquoted(trimmed) {
            return Ok((!quoted.trim().is_empty()).then(|| Self::Say(quoted.to_owned())));
        }
        if trimmed.is_empty() {
            return Ok(None);
        }
        if trimmed.starts_with("//") {
            return Ok(Some(Self::Say(trimmed[1..].to_owned())));
        }
        if !trimmed.starts_with('/') {
            return Ok(Some(Self::Say(trimmed.to_owned())));
        }
        let (name, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let rest = rest.trim();
        let file = || if rest.is_empty() { Err(format!("{name} needs a file")) } else { Ok(path(rest)) };
        let alone = |command: Self| {
            if rest.is_empty() { Ok(command) } else { Err(format!("{name} takes nothing after it")) }
        };
        let command = match name {
            "/model" if rest.is_empty() => Self::ShowModel,
            "/model" => Self::UseModel(rest.to_owned()),
            "/system" if rest.is_empty() => Self::ShowSystem,
            "/system" if rest == "-" => Self::SetSystem(None),
            "/system" => Self::SetSystem(Some(unquoted(rest).unwrap_or(rest).to_owned())),
            "/save" => Self::Save(file()?),
            "/load" => Self::Load(file()?),
            "/clear" => alone(Self::Clear)?,
            "/help" | "/?" => alone(Self::Help)?,
            "/quit" | "/exit" | "/bye" => alone(Self::Quit)?,
            _ => return Err(format!("there is no command {name}")),
        };
        Ok(Some(command))
    }
}

/// Returns whether a text of several lines has begun and not ended.
pub(super) fn is_open(text: &str) -> bool {
    let text = text.trim();
    let begin = text.strip_prefix("/system").map_or(text, str::trim_start);
    begin.strip_prefix(QUOTES).is_some_and(|rest| !rest.ends_with(QUOTES))
}

fn unquoted(text: &str) -> Option<&str> {
    Some(text.strip_prefix(QUOTES)?.strip_suffix(QUOTES)?.trim_matches('\n'))
}

/// Reads `~/` as the home directory, as shells do.
fn path(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_commands_are_told_apart() {
        let say = |text: &str| Ok(Some(Command::Say(text.to_owned())));
        for (text, meant) in [
            (" why? ", say("why?")),
            ("", Ok(None)),
            ("//etc is a folder", say("/etc is a folder")),
            ("\"\"\"\na\n\nb\n\"\"\"", say("a\n\nb")),
            ("\"\"\"\"\"\"", Ok(None)),
            ("/model", Ok(Some(Command::ShowModel))),
            ("/model  qwen3:8b", Ok(Some(Command::UseModel("qwen3:8b".to_owned())))),
            ("/system be brief", Ok(Some(Command::SetSystem(Some("be brief".to_owned()))))),
            ("/system \"\"\"a\nb\"\"\"", Ok(Some(Command::SetSystem(Some("a\nb".to_owned()))))),
            ("/system -", Ok(Some(Command::SetSystem(None)))),
            ("/save a b.json", Ok(Some(Command::Save("a b.json".into())))),
            ("/quit", Ok(Some(Command::Quit))),
        ] {
            assert_eq!(Command::parse(text), meant, "{text:?}");
        }
        for (mistake, reason) in [("/save", "needs a file"), ("/clear all", "takes nothing"), ("/sav x", "no command")]
        {
            assert!(Command::parse(mistake).unwrap_err().contains(reason), "{mistake}");
        }
    }

    #[test]
    fn a_text_of_several_lines_is_open_until_it_is_closed() {
        for (text, open) in [
            ("\"\"\"", true),
            ("\"\"\"a\nb", true),
            ("\"\"\"a\nb\"\"\"", false),
            ("a \"\"\"", false),
            ("/system \"\"\"a", true),
            ("\"\"\"\"\"\"", false),
        ] {
            assert_eq!(is_open(text), open, "{text:?}");
        }
    }
}
