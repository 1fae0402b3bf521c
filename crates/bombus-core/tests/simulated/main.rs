//! The pure protocols of `bombus-core` in simulated networks.

mod convergence;
mod faults;
mod peer;
mod router;
mod routing;
mod tasks;
mod traffic;
