//! Durable tasks in simulated swarms: nodes with disks that outlive them, a log that spreads by and by, and everything that may go wrong.

mod faults;
mod log;
mod node;
mod peaceful;
mod world;
