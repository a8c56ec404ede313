//! Replication never makes overload worse; and who is asked depends on what is known.

use tonic::Code;
use wardkeep_client::{Diversity, Member, Policy, ResponseExt as _, Restraint, SentOnce};

use crate::stage::*;

fn busy(load: &'static str) -> Stage {
    Stage::new().replica("a", move |_| Busy(1, load)).replica("b", move |_| Busy(1, load))
}

/// How many attempts calls make once the members have told their load.
async fn width(stage: Stage) -> u32 {
    let channel = stage.channel();
    for _ in 0..2 {
        get(&channel).await.unwrap();
    }
    get(&channel).await.unwrap().winner().unwrap().attempts
}

#[tokio::test(start_paused = true)]
async fn all_is_all_when_idle_and_one_when_busy() {
    for (load, wanted) in [("0", 2), ("0.2", 2), ("0.5", 2), ("0.8", 1), ("0.9", 1)] {
        assert_eq!(width(busy(load).policy(Policy::All(2))).await, wanted, "at a load of {load}");
    }
    // Who asks for no stepping down gets none; a quorum is none with less.
    let forced =
        busy("0.9").policy(Policy::All(2)).with(|b| b.restraint(Restraint::default().step_down(false)));
    assert_eq!(width(forced).await, 2);
    assert_eq!(width(busy("0.9").policy(Policy::Quorum { equal: 1, of: 2 })).await, 2);
}

#[tokio::test(start_paused = true)]
async fn in_between_the_second_copy_goes_out_when_the_first_is_late_and_when_saturated_not_at_all() {
    for (load, hedged, once) in [("0.5", true, None), ("0.9", false, Some(SentOnce::Saturated))] {
        // Of a load that is there without copies.
        let act = move |n| match n {
            0 | 1 => Busy(1, "0.9"),
            2 | 3 => Busy(1, load),
            _ => Busy(400, load),
        };
        let stage = Stage::new().policy(Policy::All(2)).replica("a", act).replica("b", act);
        let channel = stage.channel();
        let mut last = None;
        for _ in 0..12 {
            last = Some(get(&channel).await.unwrap());
        }
        let winner = last.unwrap().winner().unwrap().clone();
        assert_eq!((winner.attempts == 2, winner.sent_once), (hedged, once), "at a load of {load}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_that_is_none_is_not_believed() {
    for load in ["1.5", "-1", "NaN", "many"] {
        assert_eq!(width(busy(load).policy(Policy::All(2))).await, 2, "{load}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_saturated_a_failure_is_still_answered_by_another_member() {
    let stage = Stage::new()
        .policy(Policy::All(2))
        .replica("a", |n| if n < 2 { Busy(1, "0.9") } else { Fails(1, Code::Internal) })
        .replica("b", |_| Busy(1, "0.9"));
    let channel = stage.channel();
    for _ in 0..10 {
        get(&channel).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_fails_fast_attracts_nobody_and_is_probed_later() {
    let stage = Stage::new()
        .policy(Policy::Single)
        .replica("a", |n| if n < 3 { Fails(0, Code::Unavailable) } else { Answers(10) })
        .replica("b", |_| Answers(10));
    let channel = stage.channel();
    for _ in 0..50 {
        assert_eq!(answer(&channel).await, "b");
    }
    assert!(stage.starts().iter().filter(|(_, name)| *name == "a").count() <= 3);
    let mut answers = Vec::new();
    for _ in 0..10 {
        tokio::time::sleep(MS * 6_000).await;
        answers.push(answer(&channel).await);
    }
    assert!(answers.iter().any(|name| name == "a"), "it is well again");
}

#[tokio::test(start_paused = true)]
async fn a_hung_member_costs_a_few_calls_a_hedge_and_then_nothing() {
    let stage = Stage::new()
        .policy(hedged(20, 2))
        .replica("hung", |_| Hangs)
        .replica("b", |_| Answers(2))
        .replica("c", |_| Answers(2));
    let channel = stage.channel();
    for _ in 0..200 {
        get(&channel).await.unwrap();
    }
    let asked = stage.starts().iter().filter(|(_, name)| *name == "hung").count();
    assert!(asked <= 5 && channel.stats().hedges <= 5, "{asked} times, {:?}", channel.stats());
}

#[tokio::test(start_paused = true)]
async fn calls_that_wait_for_a_member_that_falls_move_on_though_the_budget_is_empty() {
    // 64 calls at once, half of them at a member that hangs: ten hedges are in the budget.
    let stage = Stage::new().policy(hedged(50, 2)).replica("hung", |_| Hangs).replica("good", |_| Answers(2));
    let channel = stage.channel();
    let calls = (0..64).map(|_| get(&channel));
    let replies = futures_util::future::join_all(calls).await;
    assert!(replies.iter().all(Result::is_ok));
    assert!(stage.now() < 1_000, "{} ms", stage.now());
}

#[tokio::test(start_paused = true)]
async fn copies_go_to_unlike_members_and_never_to_like_ones_where_the_rule_is_hard() {
    let on = |name: &str, disk: &str| Member::new(name, format!("http://{name}:1")).label("disk", disk);
    for hard in [true, false] {
        let rule = if hard { Diversity::any().hard("disk") } else { Diversity::any().preferred("disk") };
        let stage = Stage::new()
            .policy(Policy::All(3))
            .with(|b| b.diversity(rule))
            .member(on("a", "1"), "a", |_| Answers(1))
            .member(on("b", "1"), "b", |_| Answers(1))
            .member(on("c", "2"), "c", |_| Answers(1));
        let channel = stage.channel();
        for _ in 0..9 {
            stage.clear();
            get(&channel).await.unwrap();
            let names: Vec<_> = stage.starts().into_iter().map(|(_, name)| name).collect();
            assert!(names[..2].contains(&"c"), "{names:?}");
            assert_eq!(names.len(), if hard { 2 } else { 3 });
        }
    }
}

#[tokio::test(start_paused = true)]
async fn copies_go_to_the_same_version() {
    let of =
        |name: &str, version: &str| Member::new(name, format!("http://{name}:1")).label("version", version);
    let stage = Stage::new().policy(Policy::All(2)).member(of("old", "1"), "old", |_| Answers(1)).member(
        of("new", "2"),
        "new",
        |_| Fails(1, Code::Unavailable),
    );
    let channel = stage.channel();
    for _ in 0..4 {
        stage.clear();
        assert_eq!(answer(&channel).await, "old", "another version is asked when its own has failed");
        let at_once = stage.starts().iter().filter(|(at, _)| *at == stage.starts()[0].0).count();
        assert_eq!(at_once, 1);
    }
}
