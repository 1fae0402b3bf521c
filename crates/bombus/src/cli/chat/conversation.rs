use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use bombus_core::chat::{ChatRequest, Message, Prompt, Role};
use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};

/// Version of the files that are written.
const FORMAT: u32 = 1;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// What was said so far, and to whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Conversation {
    /// Version of the file's format; tells such a file from others.
    bombus_chat: u32,
    model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    messages: Vec<Turn>,
}

/// A turn, in the shape that every client of the API knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Turn {
    role: Role,
    content: String,
}

impl Conversation {
    pub(super) fn new(model: String, system: Option<String>) -> Self {
        Self { bombus_chat: FORMAT, model, system, messages: Vec::new() }
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn set_model(&mut self, model: String) {
        self.model = model;
    }

    pub(super) fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    pub(super) fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Returns how many turns there are.
    pub(super) fn turns(&self) -> usize {
        self.messages.len()
    }

    /// Forgets what was said; the model and the system message stay.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    pub(super) fn add_question(&mut self, text: String) {
        self.messages.push(Turn { role: Role::User, content: text });
    }

    /// Adds what the model said to the last question. Without an answer the question is taken back.
    pub(super) fn end_turn(&mut self, answer: &str) {
        if answer.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Turn { role: Role::Assistant, content: answer.to_owned() });
        }
    }

    /// Forgets the older half of the questions with their answers. Returns how many turns those were; the last question stays.
    pub(super) fn drop_oldest_half(&mut self) -> usize {
        let questions: Vec<usize> =
            (0..self.messages.len()).filter(|at| self.messages[*at].role == Role::User).collect();
        let Some(first_kept) = questions.get(questions.len().div_ceil(2)).or(questions.last()).copied() else {
            return 0;
        };
        self.messages.drain(..first_kept);
        first_kept
    }

    /// Builds the request for the next answer.
    pub(super) fn request(&self) -> ChatRequest {
        let system = self.system.as_ref().map(|text| Message::text(Role::System, text));
        let turns = self.messages.iter().map(|turn| Message::text(turn.role, &turn.content));
        ChatRequest::new(self.model.clone(), Prompt::Chat(system.into_iter().chain(turns).collect()))
    }

    /// Writes the conversation to a file that its owner alone can read. Only a file of such a kind is replaced.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        if path.exists() && read(path).is_err() {
            let message = format!("{} is there already and is no conversation", path.display());
            return Err(Failure::new(Exit::Usage, message).hint("take another name").into());
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.persist(path)?;
            Ok(())
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Reads a conversation that was saved.
    pub(super) fn load(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(Failure::new(Exit::NotFound, format!("{} is not a file", path.display())).into());
        }
        read(path)
    }
}

fn read(path: &Path) -> Result<Conversation> {
    let refuse = |reason: String| Failure::new(Exit::Usage, format!("{} {reason}", path.display()));
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| refuse(format!("is no conversation: {error}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(refuse(format!("is larger than {} MiB", FILE_BYTES_MAX >> 20)).into());
    }
    let conversation: Conversation =
        serde_json::from_str(&text).map_err(|error| refuse(format!("is no conversation that was saved: {error}")))?;
    if conversation.bombus_chat > FORMAT {
        let found = conversation.bombus_chat;
        return Err(refuse(format!("has format {found}, and this version of bombus knows up to {FORMAT}")).into());
    }
    Ok(conversation)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_turns(count: usize) -> Conversation {
        let mut conversation = Conversation::new("m".to_owned(), Some("be brief".to_owned()));
        for number in 0..count {
            conversation.add_question(format!("q{number}"));
            conversation.end_turn(&format!("a{number}"));
        }
        conversation
    }

    #[test]
    fn a_saved_conversation_comes_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chat.json");
        let conversation = with_turns(2);
        conversation.save(&path).unwrap();
        conversation.save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), conversation);
        assert_eq!(crate::platform::open_to_others(&path).unwrap(), None);
    }

    #[test]
    fn other_files_are_neither_replaced_nor_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        std::fs::write(&path, "mine").unwrap();
        assert!(with_turns(1).save(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert!(Conversation::load(&path).is_err());
        assert!(Conversation::load(&folder.path().join("none")).is_err());
        std::fs::write(&path, r#"{"bombus_chat": 99, "model": "m", "messages": []}"#).unwrap();
        assert!(Conversation::load(&path).unwrap_err().to_string().contains("has format 99"));
    }

    #[test]
    fn a_question_without_an_answer_is_taken_back() {
        let mut conversation = with_turns(1);
        conversation.add_question("q1".to_owned());
        conversation.end_turn("");
        assert_eq!(conversation, with_turns(1));
    }

    #[test]
    fn the_oldest_half_goes_and_the_last_question_stays() {
        let mut conversation = with_turns(3);
        conversation.add_question("q3".to_owned());
        assert_eq!(conversation.drop_oldest_half(), 4);
        assert_eq!(conversation.messages[0].content, "q2");
        assert_eq!((conversation.drop_oldest_half(), conversation.turns()), (2, 1));
        assert_eq!((conversation.drop_oldest_half(), conversation.turns()), (0, 1));
        assert_eq!(conversation.system(), Some("be brief"));
    }
}
