//! Parity with OTP: random stories are played on a real Erlang/OTP supervisor and on the steward, and
//! must go the same way: the same starts and stops in the same order, the same wards alive after each
//! step, the same giving up.
//!
//! ```text
//! cargo test -p wardkeep-steward --test parity
//! WARDKEEP_PARITY_SEED=4711 WARDKEEP_PARITY_STORIES=1      one story, told in full if it differs
//! ```
//!
//! `erl` must be installed (or named by `WARDKEEP_ERL`). Without it the test says so and passes, unless
//! `WARDKEEP_CI=1`.
//!
//! Where we differ by design, stories do not go there (docs/decisions/0006): no pause between restarts
//! and no fleet-wide budget here, for OTP has neither; time stands still, so that no restart is ever
//! older than the period.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod peer;
mod story;
mod teller;
mod world;

use std::{env, io::Write as _};

use teller::Story;

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// The path to `erl`, or nothing if the test is to be skipped.
fn erl() -> Option<String> {
    match peer::find() {
        Ok(erl) => Some(erl),
        Err(why) if env::var_os("WARDKEEP_CI").is_some_and(|value| value == "1") => {
            panic!("Erlang/OTP is needed here: {why}")
        }
        Err(why) => {
            say(&format!("skipped: no erl: {why}"));
            None
        }
    }
}

/// Past the capture of test output: nobody should take a skipped run for one that passed.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn random_stories_go_the_same_way_under_otp_and_under_the_steward() {
    let Some(erl) = erl() else { return };
    let (seed, count) = (number("WARDKEEP_PARITY_SEED", 1), number("WARDKEEP_PARITY_STORIES", 10_000));
    say(&format!("parity with OTP: {count} stories from seed {seed}"));
    let stories: Vec<_> = (seed..seed + count).map(Story::draw).collect();
    let terms: Vec<_> = stories.iter().map(|story| story.term()).collect();
    let answers = peer::play(&erl, &terms);
    let differing: Vec<_> =
        stories.iter().zip(&answers).filter(|(story, answer)| story.words != **answer).collect();
    if let Some((story, answer)) = differing.first() {
        panic!("{} of {count} stories differ; the first:\n{}", differing.len(), story.against(answer));
    }
}

/// Stories that never go anywhere would prove nothing.
#[test]
fn stories_come_to_every_kind_of_turn() {
    let stories: Vec<_> = (0..2_000).map(Story::draw).collect();
    let among = |what: &dyn Fn(&Story) -> bool| stories.iter().filter(|story| what(story)).count();
    let turns = [
        ("ends", among(&|story| story.words.last().is_some_and(|word| word.ends_with('!')))),
        ("has a group in a group", among(&|story| story.term().matches("{group,").count() > 1)),
        ("has a significant member", among(&|story| story.term().contains(",true}"))),
        ("fails to start twice", among(&|story| story.words.iter().any(|word| word.contains("+a+a+a")))),
        (
            "restarts several",
            among(&|story| story.words[1..].iter().any(|word| word.matches('-').count() > 2)),
        ),
    ];
    for (what, count) in turns {
        assert!(count >= 25, "only {count} of 2,000 stories: {what}");
    }
    for op in ["{exit,", "{exits,", "{stop,", "{delete,", "{start,", "{join,", "{meanwhile,"] {
        assert!(among(&|story| story.term().contains(op)) >= 50, "{op}");
    }
}
