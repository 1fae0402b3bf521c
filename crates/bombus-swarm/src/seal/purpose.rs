//! What a sealed text is bound to.

use bombus_core::identity::NodeId;

/// What comes first, so that nothing else that is ever sealed can be taken for this.
const DOMAIN: &[u8] = b"bombus seal 1\0";

/// What a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// What is to be answered: from the requester to workers.
    Prompt,
    /// The answer: from a worker to the requester.
    Result,
}

/// What a sealed text is bound to: it opens for nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purpose<'a> {
    /// The id of the task.
    pub task: &'a str,
    /// What the text is.
    pub role: Role,
    /// Who sealed it.
    pub from: &'a NodeId,
}

impl Purpose<'_> {
    /// Writes the purpose so that no two have the same bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let role = match self.role {
            Role::Prompt => b'p',
            Role::Result => b'r',
        };
        let task_bytes = (self.task.len() as u64).to_be_bytes();
        [DOMAIN, &[role], &task_bytes, self.task.as_bytes(), self.from.as_str().as_bytes()].concat()
    }
}
