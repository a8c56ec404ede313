use proptest::prelude::*;

use super::{Decision::*, Outcome::*, *};
use crate::policy::FATAL;

const LOST: Outcome = Lost { never_sent: false };
const UNSENT: Outcome = Lost { never_sent: true };
const BROKEN: Outcome = Broken { unprocessed: false };
const GOOD: Outcome = Good { answer: 0 };
const STEP: Duration = Duration::from_millis(10);

fn refused(code: Code) -> Outcome {
    Refused { code, pushback: None, unbegun: false }
}

fn pushed(pushback: Pushback) -> Outcome {
    Refused { code: Code::Unavailable, pushback: Some(pushback), unbegun: false }
}

fn all(width: usize) -> Rules {
    Rules { repeatable: true, first: width, ..Rules::once(FATAL) }
}

fn hedged(most: usize) -> Rules {
    Rules { repeatable: true, most, delay: Some(STEP), eager: true, ..Rules::once(FATAL) }
}

fn tied(most: usize) -> Rules {
    Rules { tied: Some(STEP * 10), ..hedged(most) }
}

fn quorum(equal: usize, of: usize) -> Rules {
    Rules { equal, ..all(of) }
}

fn race(rules: Rules, members: usize) -> Race {
    Race::new(rules, members, members)
}

fn ended(race: &mut Race, attempt: u32, outcome: Outcome) -> Decision {
    race.step(STEP, Input::Ended { attempt, outcome, throttled: false })
}

fn due(race: &mut Race, steps: u32) -> Decision {
    race.step(STEP * steps, Input::Due { allowed: true })
}

#[test]
fn a_race_is_as_wide_as_its_policy_and_its_members_allow() {
    assert_eq!(race(all(2), 3).begin(), Start(2));
    assert_eq!(race(all(3), 1).begin(), Start(1));
    assert_eq!(race(all(2), 0).begin(), GiveUp);
    assert_eq!(race(Rules { first: 3, ..Rules::once(FATAL) }, 3).begin(), Start(1));
    // Copies go to equals only.
    assert_eq!(Race::new(all(3), 3, 2).begin(), Start(2));
}

#[test]
fn a_fast_error_waits_for_a_slow_success() {
    let mut race = race(all(2), 2);
    race.begin();
    assert_eq!(ended(&mut race, 1, refused(Code::Internal)), Wait);
    assert_eq!(ended(&mut race, 2, GOOD), Deliver(2));
}

#[test]
fn a_fatal_code_ends_the_race() {
    let mut race = race(all(2), 2);
    race.begin();
    assert_eq!(ended(&mut race, 2, refused(Code::InvalidArgument)), Deliver(2));
    assert_eq!(race.running(), 1);
}

#[test]
fn a_lost_attempt_is_replaced_while_members_are_left() {
    let mut race = Race::new(all(1), 3, 1);
    race.begin();
    assert_eq!(ended(&mut race, 1, LOST), Start(1));
    assert_eq!(ended(&mut race, 2, refused(Code::Unavailable)), Start(1));
    assert_eq!(ended(&mut race, 3, LOST), GiveUp);
}

#[test]
fn too_busy_is_not_answered_with_more_load_that_is_not_in_the_budget() {
    let mut full = race(all(2), 3);
    full.begin();
    assert_eq!(ended(&mut full, 1, refused(Code::ResourceExhausted)), Wait);
    for (allowed, decision) in [(true, Start(1)), (false, Deliver(1))] {
        let mut race = race(hedged(3), 3);
        race.begin();
        assert_eq!(ended(&mut race, 1, refused(Code::ResourceExhausted)), Wait);
        assert_eq!((race.is_replacement(), race.wake_at()), (false, Some(STEP)));
        assert_eq!(race.step(STEP, Input::Due { allowed }), decision);
    }
    // A service config that calls it no failure of the call has its way.
    let mut theirs = race(Rules { ours: false, ..hedged(3) }, 3);
    theirs.begin();
    assert_eq!(ended(&mut theirs, 1, refused(Code::ResourceExhausted)), Start(1));
}

#[test]
fn a_deliberate_answer_stands_unless_another_says_otherwise() {
    let mut alone = race(hedged(3), 3);
    alone.begin();
    assert_eq!(ended(&mut alone, 1, refused(Code::NotFound)), Deliver(1));
    let mut two = race(hedged(3), 3);
    two.begin();
    due(&mut two, 1);
    assert_eq!(ended(&mut two, 1, refused(Code::NotFound)), Wait);
    assert_eq!(ended(&mut two, 2, GOOD), Deliver(2));
    let mut theirs = race(Rules { ours: false, ..hedged(3) }, 3);
    theirs.begin();
    assert_eq!(ended(&mut theirs, 1, refused(Code::NotFound)), Start(1));
}

#[test]
fn what_must_not_be_repeated_moves_on_only_if_it_was_never_sent() {
    let mut once = race(Rules::once(FATAL), 3);
    assert_eq!(once.begin(), Start(1));
    assert_eq!(ended(&mut once, 1, UNSENT), Start(1));
    assert_eq!(ended(&mut once, 2, LOST), GiveUp);
    for (outcome, decision) in [(refused(Code::Unavailable), Deliver(1)), (BROKEN, GiveUp)] {
        let mut once = race(Rules::once(FATAL), 3);
        once.begin();
        assert_eq!(ended(&mut once, 1, outcome), decision);
    }
}

#[test]
fn the_same_deliberate_answer_from_all_is_the_answer() {
    let mut agreed = race(all(2), 2);
    agreed.begin();
    assert_eq!(ended(&mut agreed, 2, refused(Code::NotFound)), Wait);
    assert_eq!(ended(&mut agreed, 1, refused(Code::NotFound)), Deliver(2));
    let mut divided = race(all(2), 2);
    divided.begin();
    ended(&mut divided, 1, refused(Code::NotFound));
    assert_eq!(ended(&mut divided, 2, refused(Code::Internal)), GiveUp);
}

#[test]
fn a_hedge_goes_out_at_each_delay_up_to_the_most() {
    let mut race = race(hedged(3), 5);
    assert_eq!(race.begin(), Start(1));
    assert_eq!(race.wake_at(), Some(STEP));
    assert_eq!(race.step(STEP / 2, Input::Due { allowed: true }), Wait);
    assert_eq!(due(&mut race, 1), Start(1));
    assert_eq!(race.wake_at(), Some(STEP * 2));
    assert_eq!(due(&mut race, 2), Start(1));
    assert_eq!(race.wake_at(), None);
    assert_eq!(due(&mut race, 3), Wait);
}

#[test]
fn a_hedge_that_is_not_in_the_budget_is_asked_for_again_after_another_delay() {
    let mut race = race(hedged(2), 2);
    race.begin();
    assert_eq!(race.step(STEP, Input::Due { allowed: false }), Wait);
    assert_eq!(race.wake_at(), Some(STEP * 2));
    assert_eq!(due(&mut race, 2), Start(1));
}

#[test]
fn a_failure_that_is_not_fatal_starts_the_next_copy_at_once_and_the_delay_anew() {
    let mut race = race(hedged(3), 3);
    race.begin();
    let outcome = refused(Code::Internal);
    let input = Input::Ended { attempt: 1, outcome, throttled: false };
    assert_eq!(race.step(STEP / 2, input), Start(1));
    assert_eq!(race.wake_at(), Some(STEP + STEP / 2));
}

#[test]
fn pushback_delays_the_next_copy_or_stops_all() {
    let mut later = race(hedged(3), 3);
    later.begin();
    assert_eq!(ended(&mut later, 1, pushed(Pushback::After(STEP * 4))), Wait);
    assert!(later.is_replacement());
    assert_eq!(later.wake_at(), Some(STEP * 5));
    assert_eq!(due(&mut later, 4), Wait);
    assert_eq!(due(&mut later, 5), Start(1));
    assert_eq!(later.wake_at(), Some(STEP * 6));
    let mut never = race(hedged(3), 3);
    never.begin();
    due(&mut never, 1);
    assert_eq!(ended(&mut never, 2, pushed(Pushback::Stop)), Wait);
    assert_eq!(never.wake_at(), None);
    assert_eq!(ended(&mut never, 1, refused(Code::Internal)), GiveUp);
}

#[test]
fn when_too_much_fails_only_what_never_left_is_sent_anew() {
    let throttled = |attempt, outcome| Input::Ended { attempt, outcome, throttled: true };
    let mut race = race(hedged(3), 4);
    race.begin();
    assert_eq!(race.step(STEP, throttled(1, UNSENT)), Start(1));
    assert_eq!(race.step(STEP, throttled(2, refused(Code::Internal))), GiveUp);
}

#[test]
fn attempts_that_never_left_are_not_counted() {
    let mut race = race(hedged(2), 4);
    race.begin();
    assert_eq!(ended(&mut race, 1, UNSENT), Start(1));
    assert_eq!(ended(&mut race, 2, LOST), Start(1));
    assert_eq!(ended(&mut race, 3, LOST), GiveUp);
}

#[test]
fn a_connection_that_broke_by_its_own_limits_is_used_anew_a_few_times() {
    let mut race = race(all(1), 1);
    race.begin();
    for attempt in 1..=REPEATS {
        assert_eq!(ended(&mut race, attempt, BROKEN), Again(attempt));
        assert_eq!(race.running(), 1);
    }
    assert_eq!(ended(&mut race, REPEATS + 1, BROKEN), GiveUp);
}

#[test]
fn a_lost_connection_is_answered_with_another_member_and_if_there_is_none_with_the_same() {
    let mut race = Race::new(all(1), 2, 1);
    race.begin();
    assert_eq!(ended(&mut race, 1, Cut), Start(1));
    assert_eq!(ended(&mut race, 2, Cut), Again(2));
    assert_eq!(ended(&mut race, 3, Cut), Again(3));
    assert_eq!(ended(&mut race, 4, Cut), GiveUp);
    let mut once = self::race(Rules::once(FATAL), 2);
    once.begin();
    assert_eq!(ended(&mut once, 1, Cut), GiveUp);
}

#[test]
fn the_one_that_began_is_left_alone_with_the_work() {
    let mut race = race(tied(3), 3);
    race.begin();
    due(&mut race, 1);
    due(&mut race, 2);
    assert_eq!(race.step(STEP * 2, Input::Began(2)), Withdraw(vec![1, 3]));
    assert_eq!(race.running(), 1);
    assert_eq!(race.wake_at(), Some(STEP * 12), "much later, in case it got stuck");
    assert_eq!(ended(&mut race, 2, GOOD), Deliver(2));
}

#[test]
fn when_two_have_begun_both_go_on() {
    let mut race = race(tied(2), 2);
    race.begin();
    due(&mut race, 1);
    assert_eq!(race.step(STEP, Input::Began(1)), Withdraw(vec![2]));
    let mut race = self::race(tied(3), 3);
    race.begin();
    race.step(STEP, Input::Began(1));
    assert_eq!(due(&mut race, 11), Start(1));
    assert_eq!(race.step(STEP * 11, Input::Began(2)), Wait);
    assert_eq!(race.running(), 2);
}

#[test]
fn when_the_one_that_began_fails_those_withdrawn_are_asked_again() {
    let mut race = race(tied(2), 2);
    race.begin();
    due(&mut race, 1);
    race.step(STEP, Input::Began(1));
    assert_eq!(ended(&mut race, 1, LOST), Start(1));
    assert_eq!(ended(&mut race, 3, GOOD), Deliver(3));
}

#[test]
fn suspicion_of_all_that_runs_brings_the_next_copy_forward() {
    let mut race = race(hedged(2), 2);
    race.begin();
    assert_eq!(race.step(STEP / 2, Input::Suspected(1)), Wait);
    assert_eq!(race.wake_at(), Some(STEP / 2));
}

#[test]
fn a_quorum_is_so_many_equal_answers() {
    let mut race = race(quorum(2, 3), 3);
    assert_eq!(race.begin(), Start(3));
    assert_eq!(ended(&mut race, 3, Good { answer: 0 }), Wait);
    assert_eq!(ended(&mut race, 1, Good { answer: 1 }), Wait);
    assert_eq!(ended(&mut race, 2, Good { answer: 0 }), Deliver(3));
}

#[test]
fn a_quorum_that_cannot_be_had_any_more_is_given_up_at_once() {
    let mut race = race(quorum(3, 3), 3);
    race.begin();
    assert_eq!(ended(&mut race, 1, Good { answer: 0 }), Wait);
    assert_eq!(ended(&mut race, 2, Good { answer: 1 }), GiveUp);
}

#[test]
fn for_a_quorum_one_refusal_is_one_voice() {
    let mut race = race(quorum(2, 3), 3);
    race.begin();
    assert_eq!(ended(&mut race, 1, refused(Code::InvalidArgument)), Wait);
    assert_eq!(ended(&mut race, 2, Good { answer: 0 }), Wait);
    assert_eq!(ended(&mut race, 3, refused(Code::InvalidArgument)), Deliver(1));
}

fn again(rules: Rules) -> Rules {
    Rules { rounds: 2, until: STEP * 40, ..rules }
}

#[test]
fn when_all_have_failed_and_may_be_well_again_they_are_asked_again_after_growing_pauses() {
    let mut race = race(again(all(2)), 2);
    race.begin();
    let ended_at = |race: &mut Race, steps, attempt, outcome| {
        race.step(STEP * steps, Input::Ended { attempt, outcome, throttled: false })
    };
    assert_eq!(ended(&mut race, 1, UNSENT), Wait);
    assert_eq!(ended(&mut race, 2, refused(Code::Unavailable)), Wait);
    assert_eq!(race.wake_at(), Some(STEP + REST));
    assert!(race.is_resting());
    assert_eq!(due(&mut race, 6), Renew { members_of: vec![1, 2], start: 2 });
    assert_eq!(ended_at(&mut race, 6, 4, UNSENT), Wait);
    assert_eq!(ended_at(&mut race, 6, 3, UNSENT), Wait);
    assert_eq!(race.wake_at(), Some(STEP * 6 + REST * 2));
    assert_eq!(due(&mut race, 16), Renew { members_of: vec![4, 3], start: 2 });
    assert_eq!(ended(&mut race, 5, UNSENT), Wait);
    assert_eq!(ended(&mut race, 6, UNSENT), GiveUp, "two rounds, and no more");
}

#[test]
fn one_that_would_fail_again_ends_a_call_at_once() {
    let mut race = race(again(all(2)), 2);
    race.begin();
    assert_eq!(ended(&mut race, 1, UNSENT), Wait);
    assert_eq!(ended(&mut race, 2, refused(Code::Internal)), GiveUp);
}

#[test]
fn a_round_is_paid_for_and_does_not_begin_when_the_time_is_nearly_over() {
    let mut race = self::race(again(all(2)), 1);
    race.begin();
    ended(&mut race, 1, refused(Code::Unavailable));
    assert_eq!(race.step(STEP * 6, Input::Due { allowed: false }), Deliver(1));
    let mut late = self::race(Rules { until: STEP + REST, ..again(all(2)) }, 1);
    late.begin();
    assert_eq!(ended(&mut late, 1, refused(Code::Unavailable)), Deliver(1));
    let mut hushed = self::race(again(all(1)), 1);
    hushed.begin();
    assert_eq!(ended(&mut hushed, 1, pushed(Pushback::Stop)), Deliver(1));
    let mut told = self::race(again(all(1)), 1);
    told.begin();
    assert_eq!(ended(&mut told, 1, pushed(Pushback::After(STEP * 20))), Wait);
    assert_eq!(told.wake_at(), Some(STEP * 21));
}

#[test]
fn attempts_beyond_the_members_are_made_as_far_as_the_policy_goes() {
    let mut race = race(again(hedged(3)), 2);
    race.begin();
    assert_eq!(ended(&mut race, 1, refused(Code::Unavailable)), Start(1));
    assert_eq!(ended(&mut race, 2, refused(Code::Unavailable)), Wait);
    assert_eq!(due(&mut race, 6), Renew { members_of: vec![1, 2], start: 1 });
    assert_eq!(
        race.step(
            STEP * 7,
            Input::Ended { attempt: 3, outcome: refused(Code::Unavailable), throttled: false }
        ),
        GiveUp
    );
}

#[test]
fn what_must_not_be_repeated_goes_to_another_if_the_first_has_begun_nothing() {
    let unbegun = Refused { code: Code::Unavailable, pushback: None, unbegun: true };
    let mut once = race(again(Rules::once(FATAL)), 2);
    once.begin();
    assert_eq!(ended(&mut once, 1, unbegun), Start(1));
    assert_eq!(ended(&mut once, 2, unbegun), Wait);
    assert_eq!(due(&mut once, 6), Renew { members_of: vec![1, 2], start: 1 });
    assert_eq!(ended(&mut once, 3, refused(Code::Unavailable)), GiveUp);
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let shapes = (1usize..5, 1usize..6, any::<bool>(), any::<bool>(), 1usize..4);
    shapes.prop_flat_map(|(first, most, repeatable, eager, equal)| {
        prop_oneof![
            Just(Rules { first, repeatable, equal: equal.min(first), ..Rules::once(FATAL) }),
            Just(Rules { most, eager, ours: repeatable, rounds: 2, ..hedged(most) }),
            Just(Rules { first, repeatable, rounds: 3, ..Rules::once(FATAL) }),
            Just(Rules { most, eager, ..tied(most) }),
        ]
    })
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let code = prop_oneof![
        Just(Code::Unavailable),
        Just(Code::Internal),
        Just(Code::InvalidArgument),
        Just(Code::NotFound),
        Just(Code::ResourceExhausted),
    ];
    let pushback = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Pushback::Stop)),
        1 => Just(Some(Pushback::After(STEP * 3))),
    ];
    prop_oneof![
        2 => (0u32..2).prop_map(|answer| Good { answer }),
        4 => (code, pushback, any::<bool>()).prop_map(|(code, pushback, unbegun)| Refused { code, pushback, unbegun }),
        2 => any::<bool>().prop_map(|never_sent| Lost { never_sent }),
        1 => any::<bool>().prop_map(|unprocessed| Broken { unprocessed }),
        1 => Just(Cut),
    ]
}

#[derive(Clone, Debug)]
enum Move {
    End(prop::sample::Index, Outcome, bool),
    Begin(prop::sample::Index),
    Suspect(prop::sample::Index),
    Due(bool),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => (any::<prop::sample::Index>(), any_outcome(), any::<bool>()).prop_map(|(i, o, t)| Move::End(i, o, t)),
        1 => any::<prop::sample::Index>().prop_map(Move::Begin),
        1 => any::<prop::sample::Index>().prop_map(Move::Suspect),
        2 => any::<bool>().prop_map(Move::Due),
    ]
}

proptest! {
    /// Any story: the counts hold, a delivered reply is one that may be, and it ends.
    #[test]
    fn whatever_happens_the_rules_are_kept(
        rules in any_rules(),
        members in 1usize..6,
        moves in prop::collection::vec(any_move(), 1..60),
    ) {
        let mut race = Race::new(rules, members, members);
        let (mut running, mut ends, mut counted, mut started) = (Vec::new(), Vec::new(), 0, 0u32);
        let mut decision = race.begin();
        let mut now = Duration::ZERO;
        let mut moves = moves.into_iter();
        loop {
            match decision {
                Start(n) => for _ in 0..n {
                    started += 1;
                    counted += 1;
                    running.push(started);
                },
                Again(_) => { started += 1; running.push(started); }
                Renew { members_of, start } => {
                    prop_assert!(start > 0 && !members_of.is_empty());
                    prop_assert!(members_of.iter().all(|m| ends.iter().any(|(n, _)| n == m)));
                    counted += start;
                    for _ in 0..start {
                        started += 1;
                        running.push(started);
                    }
                }
                Withdraw(these) => {
                    prop_assert!(rules.tied.is_some());
                    prop_assert!(these.len() < running.len(), "one at least goes on");
                    counted -= these.len();
                    running.retain(|r| !these.contains(r));
                }
                Deliver(n) => {
                    let outcome = ends.iter().find(|(m, _)| *m == n).map(|(_, o)| *o).unwrap();
                    let like = ends.iter().filter(|(_, o)| same_answer(o, &outcome)).count();
                    match outcome {
                        Good { .. } => prop_assert!(like >= rules.equal),
                        Refused { code, .. } if rules.equal > 1 => prop_assert!(
                            like >= rules.equal && (FATAL.contains(code) || UNANIMOUS.contains(code))),
                        Refused { code, .. } => prop_assert!(
                            FATAL.contains(code) || ends.len() == 1 || (UNANIMOUS.contains(code) && like == ends.len())),
                        _ => prop_assert!(false, "no reply to deliver"),
                    }
                    return Ok(());
                }
                GiveUp => {
                    let best = ends.iter().filter(|(_, o)| matches!(o, Good { .. })).count();
                    prop_assert!(best == 0 || rules.equal > 1, "a good answer is never thrown away");
                    return Ok(());
                }
                Wait => {}
            }
            prop_assert_eq!(race.running(), running.len());
            prop_assert!(counted <= rules.most);
            if !rules.repeatable { prop_assert!(running.len() <= 1); }
            prop_assert!(!running.is_empty() || race.wake_at().is_some(), "a race that waits has something to wait for");
            now += STEP;
            let Some(next) = moves.next() else { break };
            let input = match next {
                Move::End(i, outcome, throttled) if !running.is_empty() => {
                    let attempt = running.remove(i.index(running.len()));
                    ends.push((attempt, outcome));
                    if matches!(outcome, Lost { never_sent: true }) { counted = counted.saturating_sub(1); }
                    Input::Ended { attempt, outcome, throttled }
                }
                Move::Begin(i) if !running.is_empty() => Input::Began(running[i.index(running.len())]),
                Move::Suspect(i) if !running.is_empty() => Input::Suspected(running[i.index(running.len())]),
                Move::Due(allowed) => Input::Due { allowed },
                _ => continue_input(),
            };
            decision = race.step(now, input);
        }
    }
}

fn continue_input() -> Input {
    Input::Due { allowed: true }
}
