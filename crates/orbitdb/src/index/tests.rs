use proptest::prelude::*;

use super::*;

/// The sum of what the writers put, where nobody may put more than they did first: depends on the whole history of a key.
struct Capped;

impl View for Capped {
    fn evaluate(&self, _: &str, records: &[Record]) -> Option<Value> {
        let mut first: BTreeMap<&str, u64> = BTreeMap::new();
        let sum = records.iter().filter_map(|record| {
            let amount = record.operation.value.as_u64()?;
            let cap = *first.entry(&record.writer).or_insert(amount);
            (amount <= cap).then_some(amount)
        });
        Some(sum.sum::<u64>().into()).filter(|_| !records.is_empty())
    }
}

fn record(time: u64, writer: u8, key: &str, value: Option<u64>) -> Record {
    let operation = value.map_or_else(|| Operation::del(key), |value| Operation::put(key, value));
    let hash = Hash::of(format!("{time} {writer} {key} {value:?}").as_bytes());
    Record { position: Position { time, writer: [writer; 33], hash }, writer: format!("{writer}").into(), operation }
}

fn records() -> impl Strategy<Value = Vec<Record>> {
    let one = (1..20_u64, 0..3_u8, 0..4_u8, proptest::option::weighted(0.8, 0..9_u64))
        .prop_map(|(time, writer, key, value)| record(time, writer, &format!("k{key}"), value));
    proptest::collection::vec(one, 0..40).prop_map(|mut records| {
        records.sort_by_key(|record| record.position);
        records.dedup_by_key(|record| record.position);
        records
    })
}

/// Applies records in an order and in batches given by a seed.
fn indexed(rule: Rule, records: &[Record], seed: u64) -> Vec<Row> {
    let mut shuffled = records.to_vec();
    shuffled.sort_by_key(|record| Hash::of(&[&seed.to_be_bytes()[..], record.position.hash.digest()].concat()));
    let mut index = Index::new(rule);
    for batch in shuffled.chunks(1 + usize::try_from(seed % 7).unwrap()) {
        let read = |hash: &Hash| records.iter().find(|record| record.position.hash == *hash).cloned();
        index.apply(batch.to_vec(), read);
    }
    index.query(|_| true)
}

proptest! {
    #[test]
    fn any_order_of_arrival_gives_the_same(records in records(), seed: u64) {
        for rule in [Rule::Latest, Rule::View(Arc::new(Capped))] {
            prop_assert_eq!(indexed(rule.clone(), &records, seed), indexed(rule, &records, 0));
        }
    }

    #[test]
    fn the_index_is_what_a_walk_of_the_whole_log_gives(records in records(), seed: u64) {
        let mut replayed: BTreeMap<String, Option<Value>> = BTreeMap::new();
        for record in records.iter().rev() {
            let shown = (record.operation.op == Op::Put).then(|| record.operation.value.clone());
            replayed.entry(record.operation.key.clone().unwrap().into()).or_insert(shown);
        }
        let replayed: Vec<(String, Value)> = replayed.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let rows = indexed(Rule::Latest, &records, seed);
        let rows: Vec<(String, Value)> = rows.iter().map(|row| (row.key.to_string(), (*row.value).clone())).collect();
        prop_assert_eq!(rows, replayed);
    }
}

#[test]
fn a_key_shows_its_newest_entry_and_a_late_older_one_changes_nothing() {
    let mut index = Index::new(Rule::Latest);
    let read = |_: &Hash| None;
    index.apply(vec![record(5, 1, "a", Some(5)), record(6, 1, "b", Some(6))], read);
    index.apply(vec![record(4, 1, "a", Some(4)), record(7, 1, "b", None), record(3, 1, "b", Some(3))], read);
    assert_eq!(*index.get("a").unwrap().value, Value::from(5_u64));
    assert_eq!((index.get("b"), index.get("c"), index.len()), (None, None, 1));
    assert_eq!(index.query(|value| value.as_u64() > Some(4)).len(), 1);
    index.apply(vec![record(8, 2, "b", Some(8))], read);
    let newest_first: Vec<&str> = index.range(..).rev().map(|(_, key)| &**key).collect();
    assert_eq!(newest_first, ["b", "a"]);
}

#[test]
fn what_a_view_shows_is_found_by_its_key_with_its_entries_oldest_first() {
    let records: Vec<Record> = (1..=6).map(|time| record(time, 1, "a", Some(time % 3))).collect();
    let mut index = Index::new(Rule::View(Arc::new(Capped)));
    let read = |hash: &Hash| records.iter().find(|record| record.position.hash == *hash).cloned();
    for number in [3, 1, 5, 1, 4, 2, 6] {
        index.apply(vec![records[number - 1].clone()], read);
    }
    assert_eq!(*index.get("a").unwrap().value, Value::from(2_u64));
    assert_eq!(index.query(|value| value.as_u64() == Some(2)).len(), 1);
    assert!(index.query(|value| value.as_u64() != Some(2)).is_empty());
    let members: Vec<u64> = index.members("a").unwrap().map(|position| position.time).collect();
    assert_eq!(members, [1, 2, 3, 4, 5, 6]);
    assert_eq!((index.get("b"), index.members("b").unwrap().len()), (None, 0));
}
