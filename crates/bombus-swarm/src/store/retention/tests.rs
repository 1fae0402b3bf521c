use super::*;

const NOW: u64 = 1_800_000_000_000;
const DAY: u64 = 86_400_000;
const WEEK: Retention = Retention { retain: Duration::from_millis(7 * DAY), keep: 400 };
const SETTLED: Duration = Duration::from_secs(600);

fn id(number: usize) -> TaskId {
    TaskId::parse(&format!("task-{number}")).unwrap()
}

/// A generation of so many tasks, all submitted and ended so many days ago.
fn ended(generation: u64, tasks: usize, days: u64) -> Facts {
    let mut facts = Facts { generation, since: NOW - days * DAY, ..Facts::default() };
    (0..tasks).for_each(|number| facts.add(&id(number), NOW - days * DAY, Some(NOW - days * DAY), NOW));
    facts
}

fn decide(open: &[Facts]) -> Plan {
    plan(open, WEEK, SETTLED, NOW)
}

#[test]
fn a_generation_ends_when_it_is_a_quarter_of_what_is_kept() {
    assert!(!decide(&[ended(1, 100, 1)]).begins && decide(&[ended(1, 101, 1)]).begins);
    assert!(decide(&[ended(1, 1, 2)]).begins, "by its age");
    assert!(!decide(&[ended(1, 0, 30)]).begins, "an empty one takes what comes");
    let just_here = Facts { since: NOW - 1, ..ended(3, 1, 5) };
    assert!(!decide(&[just_here]).begins, "others have had it for long, and will say so");
    let many: Vec<Facts> = (1..=8).map(|generation| ended(generation, 200, 1)).collect();
    assert!(!decide(&many).begins && decide(&many[..7]).begins, "it is bounded");
}

#[test]
fn what_has_ended_long_ago_goes_unless_it_is_the_newest() {
    let told = decide(&[ended(1, 10, 20), ended(2, 10, 7), ended(3, 10, 6), ended(4, 10, 1)]);
    assert_eq!((told.begins, told.drop), (false, vec![1, 2]));
    assert_eq!(told.kept, [(3, WhyKept::Young), (4, WhyKept::Newest)]);
    let told = decide(&[ended(4, 10, 20)]);
    assert_eq!((told.begins, told.drop), (true, vec![4]), "once the next one has begun");
    let told = decide(&[Facts { since: NOW - 1_000, ..ended(1, 10, 20) }, ended(2, 0, 1)]);
    assert_eq!(told.kept[0], (1, WhyKept::JustOpened));
    assert_eq!(decide(&[ended(1, 0, 1), ended(2, 0, 1)]).drop, [1], "there was nothing in it");
}

#[test]
fn what_is_too_much_goes_from_the_oldest_on_but_nothing_that_has_not_ended() {
    let mut waits = ended(1, 90, 3);
    (0..20).for_each(|number| waits.add(&id(number), NOW - 3 * DAY, None, NOW));
    let told = decide(&[waits, ended(2, 100, 3), ended(3, 100, 2), ended(4, 100, 2), ended(5, 100, 1)]);
    assert_eq!(told.drop, [2, 3]);
    let first = (0..10).map(id).collect();
    assert_eq!(told.kept[0], (1, WhyKept::Unfinished { tasks: 20, first }));
    let all = plan(&[ended(1, 1, 0)], Retention { keep: 0, ..WEEK }, Duration::ZERO, NOW);
    assert_eq!((all.begins, all.drop), (true, vec![1]));
}

#[test]
fn clocks_that_were_never_set_or_are_ahead_make_nothing_old() {
    let mut facts = Facts { generation: 1, since: NOW - 30 * DAY, ..Facts::default() };
    facts.add(&id(1), 3_000, Some(9_000), NOW);
    facts.add(&id(2), NOW + DAY, Some(NOW + DAY), NOW);
    assert_eq!((facts.oldest, facts.last_ended), (Some(NOW), Some(NOW)));
}

fn told(open: &[u64], unfinished: &[u64]) -> TaskGenerations {
    TaskGenerations { open: open.to_vec(), unfinished: unfinished.to_vec(), new: None }
}

fn followed(open: &[u64], dropped: &[u64], told: &[TaskGenerations]) -> Follow {
    let told: Vec<&TaskGenerations> = told.iter().collect();
    follow(&open.iter().copied().collect(), |generation| dropped.contains(&generation), &told)
}

#[test]
fn what_others_have_is_opened_but_for_what_was_dropped_here() {
    assert_eq!(followed(&[1], &[], &[told(&[1, 2], &[]), told(&[3], &[])]).open, [2, 3]);
    assert_eq!(followed(&[4, 5], &[1, 2], &[told(&[1, 2, 3, 5], &[2])]).open, [2, 3], "something is left to do in 2");
    assert_eq!(followed(&[1], &[], &[]), Follow::default());
    assert_eq!(followed(&[1], &[], &[told(&[0, u64::MAX, GENERATION_MAX + 1], &[0])]), Follow::default());
}

#[test]
fn who_comes_late_opens_the_newest_and_nobody_is_led_far_astray_by_one_peer() {
    let hundreds: Vec<u64> = (200..230).collect();
    let late = followed(&[1], &[], &[told(&hundreds, &[])]);
    assert_eq!((late.open, late.beyond), ((221..230).collect(), Some(220)), "as many as there is room for");
    let astray = followed(&[5, 6], &[], &[told(&[900_000], &[]), told(&[5, 6, 7], &[])]);
    assert_eq!((astray.open, astray.beyond), (vec![7], Some(900_000)));
    let full: Vec<u64> = (1..=10).collect();
    assert_eq!(followed(&full, &[], &[told(&[11], &[])]), Follow { open: vec![], beyond: Some(11) });
}
