use proptest::prelude::*;

use super::*;

#[test]
fn the_defaults_fit_together() {
    assert_eq!(LeaseConfig::default().check(), Ok(()));
}

#[test]
fn times_that_do_not_fit_together_are_refused_with_the_reason() {
    let config = LeaseConfig::default();
    let cases = [
        (LeaseConfig { renew_ms: 0, ..config.clone() }, LeaseConfigError::Renew),
        (LeaseConfig { renew_ms: 7_501, ..config.clone() }, LeaseConfigError::Renew),
        (LeaseConfig { grace_ms: 16_499, ..config.clone() }, LeaseConfigError::Grace),
        (LeaseConfig { max_attempts: 0, ..config }, LeaseConfigError::Attempts),
    ];
    for (config, error) in cases {
        assert_eq!(config.check(), Err(error));
    }
}

#[test]
fn pauses_double_up_to_the_longest() {
    let config = LeaseConfig { backoff_ms: 500, backoff_ms_max: 3_000, ..LeaseConfig::default() };
    let pauses: Vec<_> = [0, 1, 2, 3, 4, 64, u32::MAX].map(|failed| config.backoff(failed).as_millis()).into();
    assert_eq!(pauses, [0, 500, 1_000, 2_000, 3_000, 3_000, 3_000]);
}

#[test]
fn workers_step_in_by_rank() {
    let config = LeaseConfig::default();
    assert_eq!(config.grace(0), Duration::from_secs(30));
    assert_eq!(config.grace(3), Duration::from_secs(33));
    assert_eq!(config.rank_step(0), Duration::ZERO);
}

#[test]
fn a_lease_that_has_ended_is_not_brought_back() {
    let config = LeaseConfig::default();
    let second = Duration::from_secs;
    let mut held = HeldLease::accepted(second(0), &config);
    assert_eq!(held.renew_at(), second(5));
    held.renewing(second(5), &config);
    assert!(!held.holds(second(15)), "a renewal that nobody confirmed lengthens nothing");
    held.confirmed(second(15), second(5), &config);
    assert!(!held.holds(second(15)));
    let mut granted = GrantedLease::accepted(second(0), &config);
    assert!(!granted.renewed(granted.until(), &config));
    assert!(granted.ran_out(second(17)));
}

proptest! {
    /// Whatever the delays, and whichever renewals and confirmations are lost: while the holder may publish, the grantor gives the
    /// attempt to nobody else. The two clocks may run apart by a twentieth.
    #[test]
    fn the_holder_stops_before_the_grantor_gives_up(
        accept_delay in 0u64..20_000,
        steps in prop::collection::vec((0u64..20_000, any::<bool>(), any::<bool>()), 0..20),
        slow in 950u64..=1_000,
    ) {
        let config = LeaseConfig::default();
        // The holder's clock loses up to a twentieth: its durations are longer than it believes.
        let holder_clock = |true_ms: u64| Duration::from_millis(true_ms * slow / 1_000);
        let mut held = HeldLease::accepted(holder_clock(0), &config);
        let mut granted = GrantedLease::accepted(Duration::from_millis(accept_delay), &config);
        let mut sent = 0;
        for (delay, arrives, is_confirmed) in steps {
            sent += config.renew_ms;
            held.renewing(holder_clock(sent), &config);
            let received = sent.max(accept_delay) + delay;
            let taken = arrives && granted.renewed(Duration::from_millis(received), &config);
            if taken && is_confirmed {
                held.confirmed(holder_clock(received), holder_clock(sent), &config);
            }
            let gives_up = u64::try_from(granted.until().as_millis()).unwrap();
            prop_assert!(!held.holds(holder_clock(gives_up)), "held until {:?}, given up at {gives_up}", held.until());
        }
    }
}
