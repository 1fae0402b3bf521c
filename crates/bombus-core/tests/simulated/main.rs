//! The pure protocols of `bombus-core` in simulated networks.

mod convergence;
mod faults;
mod peer;
mod traffic;
