//! Durable tasks: what is written about them, and what follows from it.
//!
//! Nodes append documents to two replicated databases without asking each other; nobody holds a lock. [`resolve()`] makes one view out
//! of all that was written about a task: to whom it belongs, whose grant is live, which result counts. It depends on the set of
//! entries alone, so that all nodes see the same as soon as they have the same entries.

pub mod chunk;
pub mod dispatch;
mod document;
mod id;
pub mod lease;
mod options;
mod proof;
pub mod report;
mod resolve;
mod result;
mod status;
mod whole;

pub use document::{ATTEMPTS, AttemptFailure, DocumentError, TaskDocument};
pub use id::{Epoch, ParseTaskIdError, TaskId};
pub use options::TaskOptions;
pub use proof::{PROOFS_MAX, ProofMemo, proof_bytes, proof_holds, prove};
pub use resolve::{Bid, Grant, Order, Refusal, Refused, Requester, TaskView, ValidResult, Worker, Written, resolve};
pub use result::ResultDocument;
pub use status::{GrantedBy, TaskKind, TaskStatus};
pub use whole::{ChatAnswer, WholeAnswer, WholeRequest};
