//! What every engine has to do. One suite, run on each.

use std::{sync::Arc, time::Duration};

use wardkeep_proto::v1;

use super::{
    intent::{Aim, Intent, tests::intent},
    memory::MemoryStore,
    sqlite::SqliteStore,
    store::{Change, Filter, Retention, Store, Write},
};

const FOREVER: Retention = Retention { max_age: Duration::from_secs(1 << 40), max_bytes: u64::MAX };

/// Begins with an empty store.
type Check = fn(&mut dyn Store);

const CHECKS: [(&str, Check); 7] = [
    ("events come back in order, page by page", pages),
    ("the newest, those after one, those since a time", locates),
    ("only what concerns a ward, or a node", places),
    ("intents stay open until they are closed", intents),
    ("wards rest until they are released", holds),
    ("the old and the surplus are dropped, the newest never", trims),
    ("the same write may come twice", repeats),
];

#[test]
fn the_store_in_memory_conforms() {
    for (name, check) in CHECKS {
        eprintln!("{name}");
        check(&mut MemoryStore::default());
    }
}

#[test]
fn sqlite_conforms() {
    for (name, check) in CHECKS {
        eprintln!("{name}");
        let dir = tempfile::tempdir().unwrap();
        check(&mut SqliteStore::open(&dir.path().join("history.db")).unwrap());
    }
}

#[test]
fn what_sqlite_has_confirmed_is_there_when_it_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.db");
    let changes = vec![
        Change::Open(Intent { id: 4, ..intent(Aim::Restart, "w", 3) }),
        Change::Hold { ward: ("n".into(), "x".into()), quarantined: true },
    ];
    let mut first = SqliteStore::open(&path).unwrap();
    first.commit(&[Arc::new(Write { events: vec![Arc::new(event(1, "n", "w"))], changes })]).unwrap();
    // Not closed: as after a kill.
    std::mem::forget(first);
    let state = SqliteStore::open(&path).unwrap().state(0).unwrap();
    assert_eq!((state.last_sequence, state.last_intent), (1, 4));
    assert_eq!(state.intents, [Intent { id: 4, ..intent(Aim::Restart, "w", 3) }]);
    assert_eq!(state.holds, [(("n".to_owned(), "x".to_owned()), true)]);
    assert_eq!(state.decisions, [event(1, "n", "w")]);
}

/// The event of second `n`.
fn event(n: u64, node: &str, ward: &str) -> v1::Event {
    v1::Event {
        sequence: n,
        at: Some(prost_types::Timestamp { seconds: i64::try_from(n).unwrap(), nanos: 0 }),
        kind: v1::EventKind::WardRestart.into(),
        node: node.into(),
        ward: ward.into(),
        group: if ward.is_empty() { String::new() } else { "g".into() },
        text: "x".repeat(100),
        decision: Some(v1::Decision { recent: 1, intensity: 5, ..Default::default() }),
        ..Default::default()
    }
}

fn commit(store: &mut dyn Store, events: impl IntoIterator<Item = v1::Event>) {
    let events = events.into_iter().map(Arc::new).collect();
    store.commit(&[Arc::new(Write { events, changes: Vec::new() })]).unwrap();
}

fn change(store: &mut dyn Store, changes: Vec<Change>) {
    store.commit(&[Arc::new(Write { events: Vec::new(), changes })]).unwrap();
}

fn sequences(store: &mut dyn Store, filter: &Filter) -> Vec<u64> {
    let after = store.locate(filter).unwrap();
    store.page(filter, after, 1_000).unwrap().iter().map(|event| event.sequence).collect()
}

fn pages(store: &mut dyn Store) {
    assert!(sequences(store, &Filter::default()).is_empty());
    commit(store, (1..=10).map(|n| event(n, "n", "w")));
    let filter = Filter::default();
    let first = store.page(&filter, 0, 4).unwrap();
    assert_eq!(first.first(), Some(&event(1, "n", "w")));
    let after = first.last().unwrap().sequence;
    let next: Vec<_> = store.page(&filter, after, 4).unwrap().iter().map(|e| e.sequence).collect();
    assert_eq!(next, [5, 6, 7, 8]);
    assert!(store.page(&filter, 10, 4).unwrap().is_empty());
    assert_eq!(store.state(0).unwrap().last_sequence, 10);
    assert!(store.used().unwrap() > 0);
}

fn locates(store: &mut dyn Store) {
    commit(store, (1..=10).map(|n| event(n, "n", "w")));
    let found = |store: &mut dyn Store, filter| sequences(store, &filter);
    assert_eq!(found(store, Filter { newest: 2, ..Filter::default() }), [9, 10]);
    assert_eq!(found(store, Filter { newest: 99, after: 7, ..Filter::default() }), [8, 9, 10]);
    assert_eq!(found(store, Filter { since: Some(8_500), ..Filter::default() }), [9, 10]);
    assert_eq!(found(store, Filter { since: Some(8_500), newest: 1, ..Filter::default() }), [10]);
    assert!(found(store, Filter { since: Some(99_000), ..Filter::default() }).is_empty());
    assert!(found(store, Filter { after: u64::MAX >> 1, newest: 3, ..Filter::default() }).is_empty());
    assert_eq!(store.state(9_000).unwrap().decisions.len(), 2);
}

fn places(store: &mut dyn Store) {
    let gave_up = v1::Event { kind: v1::EventKind::GroupGaveUp.into(), ..event(6, "m", "w") };
    let other =
        v1::Event { kind: v1::EventKind::GroupGaveUp.into(), group: "h".into(), ..event(7, "m", "w") };
    let outer =
        v1::Event { kind: v1::EventKind::GroupRestart.into(), group: "p".into(), ..event(8, "m", "w") };
    let all =
        [event(1, "", ""), event(2, "n", ""), event(3, "n", "w"), event(4, "n", "x"), event(5, "m", "w")];
    commit(store, all.into_iter().chain([gave_up, other, outer]));
    let of = |node: &str, ward: &str, newest| Filter {
        node: node.into(),
        ward: ward.into(),
        groups: vec!["g".into(), "p".into()],
        newest,
        ..Filter::default()
    };
    assert_eq!(sequences(store, &of("n", "w", 0)), [1, 2, 3, 6, 8]);
    assert_eq!(sequences(store, &of("n", "w", 2)), [6, 8]);
    assert_eq!(sequences(store, &of("n", "", 0)), [1, 2, 3, 4]);
    assert_eq!(sequences(store, &of("n", "", 2)), [3, 4]);
    assert_eq!(sequences(store, &of("nobody", "w", 0)), [1, 6, 8]);
}

fn intents(store: &mut dyn Store) {
    let (one, two) =
        (Intent { id: 1, ..intent(Aim::Restart, "w", 3) }, Intent { id: 2, ..intent(Aim::Drain, "", 0) });
    change(store, vec![Change::Open(one.clone()), Change::Open(two.clone())]);
    let later = Intent { due_at: 9_000, ..one };
    change(store, vec![Change::Open(later.clone())]);
    assert_eq!(store.state(0).unwrap().intents, [later, two.clone()]);
    change(store, vec![Change::Close { id: 1, at: 5, outcome: "incarnation 4 runs".into() }]);
    let state = store.state(0).unwrap();
    assert_eq!((state.intents, state.last_intent), (vec![two], 2));
}

fn holds(store: &mut dyn Store) {
    let ward = ("n".to_owned(), "w".to_owned());
    for quarantined in [true, false] {
        change(store, vec![Change::Hold { ward: ward.clone(), quarantined }]);
        assert_eq!(store.state(0).unwrap().holds, [(ward.clone(), quarantined)]);
    }
    change(store, vec![Change::Release { ward: ward.clone() }, Change::Release { ward }]);
    assert!(store.state(0).unwrap().holds.is_empty());
}

fn trims(store: &mut dyn Store) {
    commit(store, (1..=2_000).map(|n| event(n, "n", "w")));
    assert!(!store.trim(&FOREVER, 10_000_000).unwrap());
    let before = store.used().unwrap();
    let age = Retention { max_age: Duration::from_secs(1_000), ..FOREVER };
    let mut steps = 0;
    while store.trim(&age, 2_000_000).unwrap() {
        steps += 1;
        assert!(steps < 100, "it ends");
    }
    assert!(steps > 0, "it goes in small steps");
    assert_eq!(sequences(store, &Filter::default()).first(), Some(&1_000));
    let after = store.used().unwrap();
    assert!(after < before, "{before} {after}");
    while store.trim(&Retention { max_bytes: after / 2, ..FOREVER }, 2_000_000).unwrap() {}
    assert!(store.used().unwrap() <= after / 2);
    assert_eq!(sequences(store, &Filter::default()).last(), Some(&2_000));
    while store.trim(&Retention { max_age: Duration::ZERO, max_bytes: 0 }, 9_000_000).unwrap() {}
    assert_eq!(sequences(store, &Filter::default()), [2_000]);
    assert_eq!(store.state(0).unwrap().last_sequence, 2_000, "no sequence is used twice");
}

fn repeats(store: &mut dyn Store) {
    for _ in 0..2 {
        commit(store, (1..=3).map(|n| event(n, "n", "w")));
        change(store, vec![Change::Open(Intent { id: 1, ..intent(Aim::Stop, "w", 3) })]);
    }
    assert_eq!(sequences(store, &Filter::default()), [1, 2, 3]);
    assert_eq!(store.state(0).unwrap().intents.len(), 1);
}
