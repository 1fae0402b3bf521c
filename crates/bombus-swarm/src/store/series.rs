//! The series of databases in which tasks are kept: each generation of it has three, whose names alone give their addresses.

use orbitdb::generation_name;

/// The database of tasks, of the first generation. Those of others have the number behind it: `swarm-tasks.2`.
pub const TASKS: &str = "swarm-tasks";
/// The database of results, of the first generation.
pub const RESULTS: &str = "swarm-results";
/// The audit log, of the first generation.
pub const EVENTS: &str = "swarm-events";

/// The greatest number that a generation can have. Nobody gets there: it keeps out what is no number of one.
pub(super) const GENERATION_MAX: u64 = 1_000_000;

/// Returns the names of the databases of a generation: tasks, results, audit log.
#[must_use]
pub fn names(generation: u64) -> [String; 3] {
    [TASKS, RESULTS, EVENTS].map(|series| generation_name(series, generation))
}

/// Returns of which generation a database is by its name; none where it is not of the tasks.
#[must_use]
pub fn generation_of(name: &str) -> Option<u64> {
    let behind = [TASKS, RESULTS, EVENTS].into_iter().find_map(|series| name.strip_prefix(series))?;
    let number = match behind.strip_prefix('.') {
        Some(number) => number.parse().ok().filter(|number| (2..=GENERATION_MAX).contains(number))?,
        None => return behind.is_empty().then_some(1),
    };
    // Of several ways to write a number one is meant.
    names(number).iter().any(|of| of == name).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_told_by_the_name() {
        assert_eq!(names(1), ["swarm-tasks", "swarm-results", "swarm-events"]);
        for generation in [1, 2, 17, GENERATION_MAX] {
            assert!(names(generation).iter().all(|name| generation_of(name) == Some(generation)));
        }
        for other in ["swarm-task", "swarm-tasks.", "swarm-tasks.1", "swarm-tasks.02", "swarm-tasks.+2", "my-tasks", ""]
        {
            assert_eq!(generation_of(other), None, "{other}");
        }
        assert_eq!(generation_of("swarm-tasks.1000001"), None);
    }
}
