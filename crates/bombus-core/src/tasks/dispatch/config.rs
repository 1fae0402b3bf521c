use std::time::Duration;

use crate::tasks::lease::LeaseConfig;

/// How many tasks a [`Dispatcher`](super::Dispatcher) handles at a time, and for how long it waits for what.
#[derive(Debug, Clone)]
pub struct DispatchConfig {
    /// Leases, grace, attempts.
    pub lease: LeaseConfig,
    /// How many runs go on at a time on this node; 0 for a node that runs none.
    pub slots: u32,
    /// How many accepted tasks of others may wait here for a slot.
    pub queue: u32,
    /// How many own tasks are being ranked, granted or offered at a time.
    pub placing: u32,
    /// How many tasks of requesters that are away this node claims at a time, those included that wait for the claim to settle.
    pub claims: u32,
    /// How long a place is looked for before a task that is submitted is written as one that nobody has.
    pub submit_limit: Duration,
    /// How long an offer may stay without an answer.
    pub offer_limit: Duration,
    /// How long a worker whose stream broke is tried to be reached again before its grant is released. One that the failure detector calls
    /// gone is not waited for.
    pub reattach_limit: Duration,
    /// How long a run may take whose task names no limit.
    pub run_limit: Duration,
    /// How long a worker that knows no leases may take for a grant whose task names no limit.
    pub foreign_limit: Duration,
    /// Whether workers that know no grants may do own tasks, which wait for their bids first.
    pub foreign_workers: bool,
    /// How long it takes at first until a task is placed anew that nobody could take; it doubles each time.
    pub retry: Duration,
    /// The longest time between two tries to place a task.
    pub retry_max: Duration,
    /// By how much later than at its deadline a `Tick` has to come for the node to count as having slept.
    pub sleep_min: Duration,
    /// By so much more urgent a task becomes with each unit of priority: one of priority 6 overtakes those of priority 5 that have
    /// waited for less than this time.
    pub ageing: Duration,
}

impl Default for DispatchConfig {
    fn default() -> Self {
        Self {
            lease: LeaseConfig::default(),
            slots: 4,
            queue: 16,
            placing: 64,
            claims: 8,
            submit_limit: Duration::from_secs(1),
            offer_limit: Duration::from_secs(3),
            reattach_limit: Duration::from_secs(2),
            run_limit: Duration::from_secs(600),
            foreign_limit: Duration::from_secs(600),
            foreign_workers: false,
            retry: Duration::from_millis(250),
            retry_max: Duration::from_secs(30),
            sleep_min: Duration::from_secs(5),
            ageing: Duration::from_secs(60),
        }
    }
}
