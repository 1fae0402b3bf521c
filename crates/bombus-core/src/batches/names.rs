use crate::tasks::TaskId;

const BATCH: &str = "batch_";
const FILE: &str = "file-";
const HEX: usize = 32;

/// A file that is computed of what came of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computed {
    /// The answers.
    Output,
    /// What failed.
    Errors,
}

impl Computed {
    /// Returns the word in ids and keys.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Output => "output",
            Self::Errors => "errors",
        }
    }

    /// Returns the id of such a file of a batch.
    #[must_use]
    pub fn file_of(self, batch: &str) -> String {
        format!("{FILE}{}-{}", batch.strip_prefix(BATCH).unwrap_or(batch), self.word())
    }
}

/// What the id of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileName {
    /// It was uploaded.
    Stored(String),
    /// It is computed of a batch, whose id this is.
    Computed(String, Computed),
}

impl FileName {
    /// Reads an id; none where no file has such a one.
    #[must_use]
    pub fn read(id: &str) -> Option<Self> {
        let rest = id.strip_prefix(FILE)?;
        let (hex, word) = rest.split_at_checked(HEX)?;
        if !is_hex(hex) {
            return None;
        }
        match word {
            "" => Some(Self::Stored(id.to_owned())),
            "-output" => Some(Self::Computed(format!("{BATCH}{hex}"), Computed::Output)),
            "-errors" => Some(Self::Computed(format!("{BATCH}{hex}"), Computed::Errors)),
            _ => None,
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == HEX && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn hex(random: [u8; 16]) -> String {
    uuid::Builder::from_random_bytes(random).into_uuid().simple().to_string()
}

/// Makes the id of a file out of random bytes.
#[must_use]
pub fn file_id(random: [u8; 16]) -> String {
    format!("{FILE}{}", hex(random))
}

/// Makes the id of a batch out of random bytes.
#[must_use]
pub fn batch_id(random: [u8; 16]) -> String {
    format!("{BATCH}{}", hex(random))
}

/// Returns the key of a document about a batch: its own where `fact` is empty.
#[must_use]
pub fn fact_key(batch: &str, fact: &str) -> String {
    if fact.is_empty() { batch.to_owned() } else { format!("{batch}/{fact}") }
}

/// Returns the batch, and the word for the fact, that the key of a document names.
pub(super) fn read_key(key: &str) -> Option<(&str, &str)> {
    let (batch, fact) = key.split_once('/').unwrap_or((key, ""));
    batch.strip_prefix(BATCH).filter(|hex| is_hex(hex)).map(|_| (batch, fact))
}

/// Returns the task of a line of a batch, counted from 1. Every node that submits the line makes the same task.
#[must_use]
pub fn task_of_line(batch: &str, line: u32) -> TaskId {
    TaskId::of_key(&format!("{batch} line {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_what_they_are() {
        let (file, batch) = (file_id([7; 16]), batch_id([7; 16]));
        assert_eq!(FileName::read(&file), Some(FileName::Stored(file.clone())));
        for computed in [Computed::Output, Computed::Errors] {
            let id = computed.file_of(&batch);
            assert_eq!(FileName::read(&id), Some(FileName::Computed(batch.clone(), computed)));
        }
        for wrong in
            ["", "file-", "file-abc", &format!("{file}-other"), &batch, &file.to_uppercase(), "file-ääääääääääääääää"]
        {
            assert_eq!(FileName::read(wrong), None, "{wrong}");
        }
        assert_eq!(read_key(&fact_key(&batch, "ended")), Some((batch.as_str(), "ended")));
        assert_eq!(read_key(&fact_key(&batch, "")), Some((batch.as_str(), "")));
        assert_eq!((read_key("other"), read_key(&file)), (None, None));
    }

    #[test]
    fn each_line_is_a_task_of_its_own_and_the_same_on_every_node() {
        let batch = batch_id([1; 16]);
        assert_eq!(task_of_line(&batch, 1), task_of_line(&batch, 1));
        assert_ne!(task_of_line(&batch, 1), task_of_line(&batch, 2));
        assert_ne!(task_of_line(&batch, 1), task_of_line(&batch_id([2; 16]), 1));
    }
}
