//! The crate as others use it: against what JavaScript wrote, between nodes, and through crashes.

#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod attacks;
mod databases;
mod durability;
mod faults;
mod vectors;
mod wire;
