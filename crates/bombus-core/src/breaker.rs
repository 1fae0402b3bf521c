//! A circuit breaker: it keeps requests away from a backend that does not work, and lets it prove that it works again.
//!
//! Only failures of the backend itself count: connections that fail or break off, answers of the 5xx kind or that cannot be read, waits
//! without end. What is wrong with a request (4xx) says nothing about the next one, and a breaker that counted it would let one bad client
//! take a backend from everybody.
//!
//! There is no clock inside. Every `now` is a time in milliseconds since any fixed moment, and never goes back.

use std::collections::VecDeque;

/// When a [`Breaker`] opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// So many failures in a row open it; at least 1.
    pub failures: u32,
    /// The failures that open it lie within this time, in milliseconds.
    pub window_ms: u64,
    /// How long it stays open the first time, in milliseconds. Each failed probe doubles it.
    pub cooldown_ms: u64,
    /// Longest time that it stays open, in milliseconds.
    pub cooldown_ms_max: u64,
    /// How long a probe that says nothing keeps others away, in milliseconds.
    pub probe_ms: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 3, window_ms: 60_000, cooldown_ms: 1_000, cooldown_ms_max: 30_000, probe_ms: 10_000 }
    }
}

/// How a request that a [`Breaker`] admitted went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its first piece came. That ends a probe, but no row of failures: answers may break off again and again after it.
    Began,
    /// The backend did its part, be it by refusing the request (4xx).
    Answered,
    /// The backend could not be reached, failed (5xx), broke off, or answered what cannot be read.
    Failed,
    /// Nothing came for too long.
    TimedOut,
    /// Whoever asked went away before there was an outcome.
    Abandoned,
}

/// What a [`Breaker`] lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything.
    Closed,
    /// Nothing before this time, in milliseconds by the caller's clock.
    Open {
        /// When the next request is let through, as a probe.
        until_ms: u64,
    },
    /// A probe is under way; the next one may begin at this time, in milliseconds by the caller's clock.
    HalfOpen {
        /// When the probe before counts as lost.
        until_ms: u64,
    },
}

/// Stands for one admitted request, so that an outcome counts for the state that admitted it and for no later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    generation: u64,
}

/// Decides whether requests may go to a backend.
///
/// An outcome that never comes does it no harm: a probe whose client went away makes room for the next one at once, and one that is
/// never heard of again does so after [`BreakerConfig::probe_ms`].
#[derive(Debug, Clone)]
pub struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    /// Grows with every change between closed, open and half-open.
    generation: u64,
    /// When the failures of the current row came, oldest first.
    failures: VecDeque<u64>,
    /// How often the time to stay open has been doubled.
    doublings: u32,
    /// Whether nothing came for too long when it last opened.
    timed_out: bool,
    /// What it means that the backend can be reached.
    reach: Reach,
}

/// What it means to a [`Breaker`] that the backend answers something cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// It may work again.
    Promising,
    /// A probe was let through early for it.
    Tried,
    /// That probe failed, so it means nothing.
    Empty,
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new(BreakerConfig::default())
    }
}

impl Breaker {
    /// Starts closed.
    #[must_use]
    pub fn new(config: BreakerConfig) -> Self {
        Self {
            config,
            state: BreakerState::Closed,
            generation: 0,
            failures: VecDeque::new(),
            doublings: 0,
            timed_out: false,
            reach: Reach::Promising,
        }
    }

    /// Returns its state.
    #[must_use]
    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Returns whether [`Breaker::begin`] would admit a request.
    #[must_use]
    pub fn admits(&self, now: u64) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open { until_ms } | BreakerState::HalfOpen { until_ms } => now >= until_ms,
        }
    }

    /// Admits a request, where it may be sent now. Its outcome is told by [`Breaker::on`].
    pub fn begin(&mut self, now: u64) -> Option<Ticket> {
        if !self.admits(now) {
            return None;
        }
        let until_ms = now.saturating_add(self.config.probe_ms);
        match self.state {
            BreakerState::Closed => {}
            BreakerState::Open { .. } => self.enter(BreakerState::HalfOpen { until_ms }),
            // The earlier probe may still prove something, so both are of one generation.
            BreakerState::HalfOpen { .. } => self.state = BreakerState::HalfOpen { until_ms },
        }
        Some(Ticket { generation: self.generation })
    }

    /// Takes the outcome of an admitted request.
    pub fn on(&mut self, now: u64, ticket: Ticket, outcome: Outcome) {
        if ticket.generation != self.generation {
            return;
        }
        let half_open = matches!(self.state, BreakerState::HalfOpen { .. });
        match outcome {
            Outcome::Began if half_open => self.close(),
            Outcome::Began => {}
            Outcome::Answered if half_open => self.close(),
            Outcome::Answered => self.failures.clear(),
            Outcome::Abandoned if half_open => self.state = BreakerState::HalfOpen { until_ms: now },
            Outcome::Abandoned => {}
            Outcome::Failed | Outcome::TimedOut => {
                self.timed_out = outcome == Outcome::TimedOut;
                if half_open {
                    self.doublings = self.doublings.saturating_add(1);
                    if self.reach == Reach::Tried {
                        self.reach = Reach::Empty;
                    }
                    self.open(now);
                } else {
                    self.count_failure(now);
                }
            }
        }
    }

    /// Takes note that the backend answered something cheap, for example listed its models. One that could not be reached is then
    /// probed at once; one that keeps requests waiting has proved nothing by it, nor has one that failed such a probe, until it was away or
    /// works again.
    pub fn reachable(&mut self, now: u64) {
        if let BreakerState::Open { until_ms } = self.state
            && until_ms > now
            && !self.timed_out
            && self.reach != Reach::Empty
        {
            self.state = BreakerState::Open { until_ms: now };
            self.reach = Reach::Tried;
        }
    }

    /// Takes note that the backend could not be asked for something cheap: it may be repaired when it can be reached again.
    pub fn unreachable(&mut self) {
        self.reach = Reach::Promising;
    }

    fn count_failure(&mut self, now: u64) {
        let begin = now.saturating_sub(self.config.window_ms);
        self.failures.retain(|at| *at >= begin);
        self.failures.push_back(now);
        if self.failures.len() >= self.config.failures.max(1) as usize {
            self.open(now);
        }
    }

    fn open(&mut self, now: u64) {
        let doubled = self.config.cooldown_ms.saturating_mul(1_u64.checked_shl(self.doublings).unwrap_or(u64::MAX));
        let cooldown_ms = doubled.min(self.config.cooldown_ms_max);
        self.enter(BreakerState::Open { until_ms: now.saturating_add(cooldown_ms) });
    }

    fn close(&mut self) {
        self.doublings = 0;
        self.reach = Reach::Promising;
        self.enter(BreakerState::Closed);
    }

    fn enter(&mut self, state: BreakerState) {
        self.state = state;
        self.generation += 1;
        self.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fail(breaker: &mut Breaker, now: u64) {
        let ticket = breaker.begin(now).expect("the breaker admits a request");
        breaker.on(now, ticket, Outcome::Failed);
    }

    fn opened(now: u64) -> Breaker {
        let mut breaker = Breaker::default();
        (0..3).for_each(|_| fail(&mut breaker, now));
        breaker
    }

    #[test]
    fn three_failures_in_a_row_open_it_and_two_do_not() {
        let mut breaker = Breaker::default();
        fail(&mut breaker, 0);
        fail(&mut breaker, 1);
        assert!(breaker.admits(1));
        fail(&mut breaker, 2);
        assert_eq!(breaker.state(), BreakerState::Open { until_ms: 1_002 });
        assert!(!breaker.admits(1_001) && breaker.admits(1_002));
    }

    #[test]
    fn an_answer_ends_the_row_and_a_first_piece_does_not() {
        for (outcome, admits) in [(Outcome::Answered, true), (Outcome::Began, false), (Outcome::Abandoned, false)] {
            let mut breaker = Breaker::default();
            fail(&mut breaker, 0);
            fail(&mut breaker, 0);
            let ticket = breaker.begin(0).unwrap();
            breaker.on(0, ticket, outcome);
            fail(&mut breaker, 0);
            assert_eq!(breaker.admits(0), admits, "{outcome:?}");
        }
    }

    #[test]
    fn failures_far_apart_do_not_open_it() {
        let mut breaker = Breaker::default();
        for minute in 0..100 {
            fail(&mut breaker, minute * 40_000);
            assert_eq!(breaker.state(), BreakerState::Closed);
        }
    }

    #[test]
    fn each_failed_probe_doubles_the_wait_up_to_its_limit() {
        let mut breaker = opened(0);
        let mut now = 0;
        for wait in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert!(!breaker.admits(now + wait - 1));
            now += wait;
            fail(&mut breaker, now);
        }
    }

    #[test]
    fn a_probe_that_answers_closes_it_and_forgets_the_doubling() {
        for outcome in [Outcome::Began, Outcome::Answered] {
            let mut breaker = opened(0);
            fail(&mut breaker, 1_000);
            let probe = breaker.begin(3_000).unwrap();
            assert_eq!(breaker.begin(3_000), None, "one probe at a time");
            breaker.on(3_001, probe, outcome);
            (0..3).for_each(|_| fail(&mut breaker, 4_000));
            assert_eq!(breaker.state(), BreakerState::Open { until_ms: 5_000 });
        }
    }

    #[test]
    fn a_probe_whose_client_goes_away_makes_room_for_the_next() {
        let mut breaker = opened(0);
        let probe = breaker.begin(1_000).unwrap();
        breaker.on(1_500, probe, Outcome::Abandoned);
        assert!(breaker.begin(1_500).is_some());
    }

    #[test]
    fn a_probe_that_is_never_heard_of_again_is_followed_by_another() {
        let mut breaker = opened(0);
        let lost = breaker.begin(1_000).unwrap();
        assert!(!breaker.admits(10_999));
        let slow = breaker.begin(11_000).unwrap();
        assert_eq!(lost, slow, "a late answer to the earlier probe still counts");
        breaker.on(11_001, lost, Outcome::Answered);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn outcomes_of_requests_from_before_change_nothing() {
        let mut breaker = Breaker::default();
        let tickets: Vec<_> = (0..64).map(|_| breaker.begin(0).unwrap()).collect();
        for ticket in &tickets {
            breaker.on(10, *ticket, Outcome::Failed);
        }
        assert_eq!(breaker.state(), BreakerState::Open { until_ms: 1_010 }, "the others do not prolong it");
        let probe = breaker.begin(1_010).unwrap();
        breaker.on(1_011, tickets[0], Outcome::Failed);
        breaker.on(1_011, tickets[0], Outcome::Answered);
        assert!(matches!(breaker.state(), BreakerState::HalfOpen { .. }));
        breaker.on(1_012, probe, Outcome::Answered);
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn a_backend_that_can_be_reached_again_is_probed_at_once_unless_it_kept_requests_waiting() {
        let mut breaker = opened(0);
        breaker.reachable(500);
        assert!(breaker.admits(500));

        let mut breaker = Breaker::default();
        for _ in 0..3 {
            let ticket = breaker.begin(0).unwrap();
            breaker.on(0, ticket, Outcome::TimedOut);
        }
        breaker.reachable(500);
        assert!(!breaker.admits(500));
    }

    #[test]
    fn a_probe_that_fails_though_the_backend_can_be_reached_lets_no_more_through_early() {
        let mut breaker = opened(0);
        breaker.reachable(500);
        fail(&mut breaker, 500);
        breaker.reachable(501);
        assert!(!breaker.admits(2_499) && breaker.admits(2_500));

        let mut restarted = breaker.clone();
        restarted.unreachable();
        restarted.reachable(502);
        assert!(restarted.admits(502), "it was away since");

        let probe = breaker.begin(2_500).unwrap();
        breaker.on(2_500, probe, Outcome::Answered);
        (0..3).for_each(|_| fail(&mut breaker, 2_500));
        breaker.reachable(2_501);
        assert!(breaker.admits(2_501), "it worked since");
    }

    /// What may happen to a breaker: time passes, a request begins, an earlier one ends, the backend is seen or is away.
    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Begin,
        End(usize, Outcome),
        Reachable,
        Unreachable,
    }

    fn step() -> impl Strategy<Value = Step> {
        let outcome = prop_oneof![
            Just(Outcome::Began),
            Just(Outcome::Answered),
            Just(Outcome::Failed),
            Just(Outcome::Failed),
            Just(Outcome::TimedOut),
            Just(Outcome::Abandoned),
        ];
        prop_oneof![
            (0..40_000_u64).prop_map(Step::Wait),
            Just(Step::Begin),
            Just(Step::Begin),
            (any::<usize>(), outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
            Just(Step::Reachable),
            Just(Step::Unreachable),
        ]
    }

    proptest! {
        #[test]
        fn whatever_happens_it_admits_a_request_again_in_time(steps in prop::collection::vec(step(), 0..200)) {
            let config = BreakerConfig::default();
            let mut breaker = Breaker::new(config);
            let (mut now, mut tickets) = (0, Vec::new());
            for step in steps {
                match step {
                    Step::Wait(ms) => now += ms,
                    Step::Begin => {
                        let admits = breaker.admits(now);
                        let ticket = breaker.begin(now);
                        prop_assert_eq!(ticket.is_some(), admits);
                        tickets.extend(ticket);
                    }
                    Step::End(which, outcome) if !tickets.is_empty() => {
                        let ticket = tickets.swap_remove(which % tickets.len());
                        breaker.on(now, ticket, outcome);
                    }
                    Step::End(..) => {}
                    Step::Reachable => breaker.reachable(now),
                    Step::Unreachable => breaker.unreachable(),
                }
                prop_assert!(breaker.admits(now + config.cooldown_ms_max.max(config.probe_ms)));
            }
        }

        #[test]
        fn refused_requests_never_open_it(count in 1..200_u64, gap_ms in 0..1_000_u64) {
            let mut breaker = Breaker::default();
            for index in 0..count {
                let ticket = breaker.begin(index * gap_ms);
                prop_assert!(ticket.is_some());
                breaker.on(index * gap_ms, ticket.unwrap(), Outcome::Answered);
            }
            prop_assert_eq!(breaker.state(), BreakerState::Closed);
        }

        #[test]
        fn at_most_one_probe_begins_in_the_time_of_a_probe(asked in prop::collection::vec(0..30_000_u64, 1..50)) {
            let mut breaker = opened(0);
            let mut asked = asked;
            asked.sort_unstable();
            let begun: Vec<u64> = asked.into_iter().filter(|at| breaker.begin(*at).is_some()).collect();
            prop_assert!(begun.iter().all(|at| *at >= 1_000));
            prop_assert!(begun.windows(2).all(|pair| pair[1] - pair[0] >= BreakerConfig::default().probe_ms));
        }
    }
}
