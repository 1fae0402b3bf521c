//! The pure protocols of `bombus-core` in simulated networks.

mod convergence;
mod faults;
mod gossip;
mod hearing;
mod peer;
mod router;
mod routing;
mod tasks;
mod traffic;
