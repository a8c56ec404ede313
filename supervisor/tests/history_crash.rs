//! A supervisor that dies at any point of a restart: when it is back nothing was restarted twice,
//! nothing forgotten, healthy wards untouched, and the history is whole.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, missing_docs)]
// The points to die at are in debug builds only.
#![cfg(debug_assertions)]

mod history_support;

use std::os::unix::process::ExitStatusExt as _;

use history_support::{BYSTANDER, Site, VICTIM, binary::Daemon, within};
use nix::sys::signal::Signal;
use wardkeep_proto::v1;

/// Before the decision is written, before the command is sent, just after; before the effect is
/// seen, before that is written, after.
const POINTS: [&str; 6] = [
    "restart-decided",
    "restart-written",
    "restart-sent",
    "restart-effect",
    "restart-closing",
    "restart-closed",
];

/// The supervisor dies at this point of what `cause` begins, and another takes its place. Also returns the node.
async fn cut_off(site: &Site, point: &str, cause: impl AsyncFnOnce(&Site)) -> (Daemon, Daemon) {
    let mut first = site.supervisor(&[("WARDKEEP_FAILPOINT", point)]).await;
    let node = site.node().await;
    site.runs(VICTIM, 1).await;
    site.runs(BYSTANDER, 1).await;
    cause(site).await;
    let ended = first.ended().await;
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32), "{point}: {:#?}", first.said);
    (site.supervisor(&[]).await, node)
}

/// How often the two wards were started.
fn starts(site: &Site) -> [usize; 2] {
    [VICTIM, BYSTANDER].map(|ward| site.starts(ward).len())
}

fn of_victim() -> v1::WardRequest {
    v1::WardRequest { node: "n".into(), ward: VICTIM.into(), detach: true, ..Default::default() }
}

/// A restart of the victim alone is cut off at this point, and finished.
async fn dies_and_returns(point: &str, restart: impl AsyncFnOnce(&Site)) -> Site {
    let site = Site::new("intensity = 3\nperiod = \"10m\"");
    let (mut next, node) = cut_off(&site, point, restart).await;
    site.runs(VICTIM, 2).await;
    site.runs(BYSTANDER, 1).await;
    site.rests().await;
    site.runs(VICTIM, 2).await;
    assert_eq!(starts(&site), [2, 1], "{point}: restarted once, the other untouched: {:#?}", next.said);
    site.is_whole();
    let victim = site.ward(VICTIM, |_| true).await;
    assert_eq!(victim.incarnation, 2, "{point}");
    // It does what it should from now on, too.
    site.crash(VICTIM);
    site.runs(VICTIM, 3).await;
    site.rests().await;
    next.signal(Signal::SIGTERM);
    assert!(next.ended().await.success(), "{:#?}", next.said);
    site.is_whole();
    node.killed().await;
    site
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_a_restart_after_a_crash() {
    within(async {
        for point in POINTS {
            let site = dies_and_returns(point, async |site| site.crash(VICTIM)).await;
            // The first restart and the last: each counted once, and over the supervisor's end.
            for n in [1, 2] {
                let decided =
                    format!("event WHERE ward = 'victim' AND text LIKE 'restart {n} of 3 allowed%'");
                assert_eq!(site.count(&decided), 1, "{point}: restart {n}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_a_restart_that_an_operator_asked_for() {
    within(async {
        // The second command is the start.
        for point in POINTS.into_iter().filter(|point| *point != "restart-decided").chain(["restart-sent*2"])
        {
            let site = dies_and_returns(point, async |site| {
                let (reason, actor) = ("a test".into(), "ana@ops".into());
                let request = v1::WardRequest { reason, actor, ..of_victim() };
                // It may die before it has answered.
                let _ = site.operator().await.restart_ward(request).await;
            })
            .await;
            assert_eq!(
                site.count("event WHERE actor = 'ana@ops' AND text LIKE 'restart asked for%'"),
                1,
                "{point}"
            );
            assert_eq!(site.count("intent WHERE actor = 'ana@ops' AND aim = 'restart'"), 1, "{point}");
            assert_eq!(
                site.count("event WHERE text LIKE 'restart % of 3 allowed%'"),
                1,
                "{point}: the last one only"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_that_was_not_written_is_not_answered_and_does_not_happen() {
    within(async {
        let site = Site::new("");
        let wish = async |site: &Site| {
            assert!(site.operator().await.restart_ward(of_victim()).await.is_err());
        };
        let (_next, _node) = cut_off(&site, "restart-decided", wish).await;
        site.runs(VICTIM, 1).await;
        site.rests().await;
        assert_eq!(starts(&site), [1, 1]);
        site.is_whole();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_waits_for_its_pause_waits_on_under_the_next_supervisor() {
    within(async {
        let site = Site::new("backoff_first = \"3s\"\nintensity = 5\nperiod = \"10m\"");
        let first = site.supervisor(&[]).await;
        let _node = site.node().await;
        site.runs(VICTIM, 1).await;
        site.crash(VICTIM);
        site.runs(VICTIM, 2).await;
        site.crash(VICTIM);
        site.ward(VICTIM, |w| w.state() == v1::WardState::Backoff).await;
        first.killed().await;

        let _next = site.supervisor(&[]).await;
        let waiting = site.ward(VICTIM, |w| w.incarnation == 2 && w.verdict() != v1::Verdict::Unreachable).await;
        assert_eq!(waiting.state(), v1::WardState::Backoff);
        site.runs(VICTIM, 3).await;
        site.rests().await;
        assert_eq!(site.starts(VICTIM).len(), 3);
        let due: i64 = site.ask("SELECT due_at FROM intent WHERE ward = 'victim' AND incarnation = 2");
        let told = "SELECT at FROM event WHERE ward = 'victim' AND text LIKE 'told to start%' ORDER BY sequence DESC LIMIT 1";
        let told: i64 = site.ask(told);
        // Clocks are read a moment apart.
        assert!(told >= due - 50, "told {told}, due {due}");
        let count = site.ward(VICTIM, |_| true).await.restarts;
        assert_eq!(count, 2, "both, by two supervisors");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_count_over_a_kill_and_a_quarantine_outlives_supervisor_and_node() {
    within(async {
        let site = Site::new("intensity = 2\nperiod = \"10m\"\nbackoff_first = \"1ms\"");
        let first = site.supervisor(&[]).await;
        let node = site.node().await;
        for incarnation in 1..=2 {
            site.runs(VICTIM, incarnation).await;
            site.crash(VICTIM);
        }
        site.runs(VICTIM, 3).await;
        first.killed().await;

        let second = site.supervisor(&[]).await;
        site.runs(VICTIM, 3).await;
        site.crash(VICTIM);
        site.ward(VICTIM, |w| w.state() == v1::WardState::Quarantined).await;
        let gave_up = |fleet: &v1::Fleet| fleet.groups.iter().any(|g| g.gave_up && g.recent_restarts == 3);
        site.until(|fleet| gave_up(fleet).then_some(())).await;
        // The picture is a moment ahead of the disk.
        site.written("hold WHERE quarantined = 1").await;
        second.killed().await;
        node.killed().await;

        // Everything is new, and the node starts its wards at once: what was quarantined is stopped.
        let _third = site.supervisor(&[]).await;
        let _node = site.node().await;
        site.ward(VICTIM, |w| w.state() == v1::WardState::Quarantined).await;
        site.rests().await;
        // An operator lifts it, and what was counted is forgiven: also for the supervisor after.
        let request = v1::WardRequest { detach: false, ..of_victim() };
        site.operator().await.start_ward(request).await.unwrap();
        site.until(|fleet| fleet.groups.iter().all(|g| !g.gave_up && g.recent_restarts == 0).then_some(()))
            .await;
        site.rests().await;
        assert_eq!(site.count("hold"), 0);
        site.is_whole();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_the_restart_of_a_whole_group() {
    within(async {
        let points =
            ["restart-written", "restart-sent", "restart-sent*2", "restart-sent*3", "restart-effect"];
        for point in points.into_iter().chain(["restart-effect*2", "restart-closing*2", "restart-closed*2"]) {
            let site = Site::grouped("strategy = \"one_for_all\"\nperiod = \"10m\"", "g");
            let (_next, _node) = cut_off(&site, point, async |site| site.crash(VICTIM)).await;
            site.runs(VICTIM, 2).await;
            site.runs(BYSTANDER, 2).await;
            site.rests().await;
            assert_eq!(starts(&site), [2, 2], "{point}");
            assert_eq!(site.count("event WHERE text LIKE 'restart 1 of 5 allowed%'"), 1, "{point}");
            assert_eq!(site.count("event WHERE text LIKE 'restart 2 of 5 allowed%'"), 0, "{point}");
            site.is_whole();
        }
    })
    .await;
}

/// Groups in p. The first failure in one of them is one too many, so that p restarts it.
fn nested(strategy: &str) -> String {
    let inner =
        |name| format!("[[group]]\nname = {name:?}\nparent = \"p\"\nintensity = 0\nperiod = \"10m\"\n");
    let outer =
        format!("[[group]]\nname = \"p\"\nstrategy = {strategy:?}\nintensity = 2\nperiod = \"10m\"\n");
    outer + &inner("g") + &inner("h")
}

/// Restarts counted in p, and in g.
fn counted(fleet: &v1::Fleet) -> Option<[u32; 2]> {
    let of = |name| fleet.groups.iter().find(|g| g.spec.as_ref().is_some_and(|s| s.name == name));
    Some([of("p")?.recent_restarts, of("g")?.recent_restarts])
}

/// The victim's group is restarted by the one it is in, and the bystander with it, once.
async fn restarts_a_group_once(point: &str, strategy: &str, of_wards: [&str; 2]) -> (Site, [Daemon; 2]) {
    let site = Site::of(&nested(strategy), of_wards);
    let (next, node) = cut_off(&site, point, async |site| site.crash(VICTIM)).await;
    site.runs(VICTIM, 2).await;
    site.runs(BYSTANDER, 2).await;
    site.rests().await;
    assert_eq!(starts(&site), [2, 2], "{point}, {strategy}");
    assert_eq!(site.until(counted).await, [1, 0], "{point}, {strategy}");
    assert_eq!(site.count("event WHERE kind = 'group_restart' AND grp = 'g'"), 1, "{point}, {strategy}");
    site.is_whole();
    (site, [next, node])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_the_restart_of_a_group_by_the_one_it_is_in() {
    within(async {
        // First its end is decided, then its restart.
        let first = ["restart-decided", "restart-written", "restart-sent"];
        let then = [
            "restart-decided*2",
            "restart-written*2",
            "restart-sent*2",
            "restart-effect",
            "restart-effect*2",
        ];
        for point in first.into_iter().chain(then) {
            restarts_a_group_once(point, "one_for_one", ["g", "g"]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_the_restart_of_a_group_with_those_beside_it() {
    within(async {
        let points =
            ["restart-decided", "restart-written", "restart-sent", "restart-sent*2", "restart-sent*3"];
        for point in points.into_iter().chain(["restart-effect", "restart-effect*2", "restart-closed*2"]) {
            restarts_a_group_once(point, "one_for_all", ["g", "h"]).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_of_groups_count_where_they_are_in_over_the_ends_of_supervisors_and_are_explained() {
    within(async {
        let (site, [next, _node]) = restarts_a_group_once("restart-written", "one_for_one", ["g", "g"]).await;
        site.crash(VICTIM);
        site.runs(VICTIM, 3).await;
        site.rests().await;
        next.killed().await;
        let last = site.supervisor(&[]).await;
        site.runs(VICTIM, 3).await;
        assert_eq!(site.until(counted).await, [2, 0]);
        site.crash(VICTIM);
        for ward in [VICTIM, BYSTANDER] {
            site.ward(ward, |w| w.state() == v1::WardState::Quarantined).await;
        }
        // Of a ward that was restarted with its group, and had done nothing wrong.
        let (code, story, _) = site.command(&["explain", BYSTANDER]).await;
        assert_eq!(code, 0);
        let mut rest = story.as_str();
        for phrase in [
            "restart budget of group g: 1 of 0 restarts used within 10m",
            "restart budget of group p: 3 of 2 restarts used within 10m, the steward gave up",
            "group g ends: 1 restarts within 10m, 0 are allowed (the last for n/victim); group p, which it is in, restarts it or gives up",
            "the steward decided to restart group g as a whole at once: restart 1 of 2 allowed of group p within 10m",
            "runs, incarnation 2",
            "restart 2 of 2 allowed of group p within 10m",
            "runs, incarnation 3",
            "the steward gave up: 3 restarts of group p within 10m, 2 are allowed",
        ] {
            let at = rest.find(phrase).unwrap_or_else(|| panic!("{phrase:?} is not told after that:\n{story}"));
            rest = &rest[at + phrase.len()..];
        }
        site.written("hold WHERE quarantined = 1 AND ward = 'bystander'").await;
        last.killed().await;
        // The next one knows of it, too.
        let _next = site.supervisor(&[]).await;
        let gave_up = |fleet: &v1::Fleet| fleet.groups.iter().filter(|group| group.gave_up).count() >= 2;
        site.until(|fleet| gave_up(fleet).then_some(())).await;
        site.is_whole();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_every_point_of_the_restart_of_a_node() {
    within(async {
        for point in ["restart-written", "restart-sent", "restart-closing", "restart-closed"] {
            let site = Site::new("");
            let boot = |fleet: &v1::Fleet| {
                let node = fleet.nodes.iter().find(|node| node.attending)?;
                node.info.as_ref().map(|info| info.boot_id.clone())
            };
            let mut before = String::new();
            let restart = async |site: &Site| {
                before = site.until(boot).await;
                let request = v1::NodeRequest { node: "n".into(), detach: true, ..Default::default() };
                let _ = site.operator().await.restart_node(request).await;
            };
            let (_next, _node) = cut_off(&site, point, restart).await;
            let after = site.until(|fleet| boot(fleet).filter(|boot| *boot != before)).await;
            site.rests().await;
            assert_eq!(site.until(boot).await, after, "{point}: once");
            let mut look = tokio::time::interval(std::time::Duration::from_millis(10));
            while starts(&site).contains(&1) {
                look.tick().await;
            }
            assert_eq!(starts(&site), [2, 2], "{point}");
            site.is_whole();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ward_that_an_operator_stopped_rests_though_the_supervisor_died_of_it() {
    within(async {
        let site = Site::new("");
        let first = site.supervisor(&[]).await;
        let node = site.node().await;
        site.runs(VICTIM, 1).await;
        site.operator().await.stop_ward(of_victim()).await.unwrap();
        // What was answered is kept, whether or not the node has heard of it.
        first.killed().await;
        node.killed().await;
        let _next = site.supervisor(&[]).await;
        let _node = site.node().await;
        site.ward(VICTIM, |ward| ward.state() == v1::WardState::Stopped && ward.held).await;
        site.rests().await;
        site.ward(VICTIM, |ward| ward.state() == v1::WardState::Stopped).await;
        site.is_whole();
    })
    .await;
}

/// A group that came to do without a ward whose node was away leaves it running: the stop that never reached it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_was_never_heard_and_is_not_wanted_any_more_is_not_left_open() {
    within(async {
        let site = Site::new("");
        let first = site.supervisor(&[]).await;
        let _node = site.node().await;
        site.runs(VICTIM, 1).await;
        site.rests().await;
        let fleet = site.picture().await;
        let boot = fleet.nodes[0].info.as_ref().unwrap().boot_id.clone();
        first.killed().await;
        let stop = "INSERT INTO intent (aim, node, ward, incarnation, boot, counted, asked, decided_at, due_at, reason, actor,
                error_id, traceparent, epoch)
            VALUES ('stop', 'n', ?1, 1, ?2, 0, 0, 1, 1, 'its group restarts', '', '', '', 1)";
        let file = rusqlite::Connection::open(site.file()).unwrap();
        assert_eq!(file.execute(stop, [VICTIM, &boot]).unwrap(), 1);
        drop(file);

        let _second = site.supervisor(&[]).await;
        site.rests().await;
        site.runs(VICTIM, 1).await;
        let outcome: String = site.ask("SELECT outcome FROM intent WHERE aim = 'stop'");
        assert_eq!(outcome, "it need not stop any more");
        assert_eq!(site.starts(VICTIM).len(), 1);
    })
    .await;
}
