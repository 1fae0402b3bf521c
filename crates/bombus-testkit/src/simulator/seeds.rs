//! The same test with many seeds.

use std::env;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::thread;

/// Runs a test with each of these seeds, on all cores. Where one fails, its seed is printed and the test fails.
///
/// `BOMBUS_SEED=17` in the environment runs seed 17 alone.
///
/// # Panics
///
/// Panics as the test does, after printing the seed.
pub fn for_each_seed(seeds: Range<u64>, test: impl Fn(u64) + Sync) {
    let only = env::var("BOMBUS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(seeds, |seed| seed..seed + 1);
    let queue = Mutex::new(seeds);
    let failure = Mutex::new(None);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(seed) = next(&queue, &failure) {
                    let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) else { continue };
                    eprintln!("this failed with seed {seed}; BOMBUS_SEED={seed} runs it alone");
                    if let Ok(mut failure) = failure.lock() {
                        failure.get_or_insert(panic);
                    }
                }
            });
        }
    });
    if let Some(panic) = failure.into_inner().expect("no test runs while the lock is held") {
        resume_unwind(panic);
    }
}

type Panic = Box<dyn std::any::Any + Send>;

fn next(queue: &Mutex<Range<u64>>, failure: &Mutex<Option<Panic>>) -> Option<u64> {
    let failed = failure.lock().expect("no test runs while the lock is held").is_some();
    if failed { None } else { queue.lock().expect("no test runs while the lock is held").next() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn every_seed_is_run_once() {
        let sum = AtomicU64::new(0);
        for_each_seed(0..100, |seed| {
            sum.fetch_add(seed, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4_950);
    }

    #[test]
    fn the_failure_of_one_is_the_failure_of_all() {
        let result = catch_unwind(|| for_each_seed(0..100, |seed| assert!(seed != 42, "forty-two")));
        let panic = result.expect_err("seed 42 fails");
        assert!(panic.downcast_ref::<&str>().is_some_and(|text| text.contains("forty-two")));
    }
}
