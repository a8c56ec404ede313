//! Events that no honest node would send, with times at the edge of what a clock can say.
#![allow(missing_docs, clippy::expect_used)]

use std::time::Duration;

use proptest::{prelude::*, strategy::Strategy};
use wardkeep_steward::*;

fn span() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        Just(Duration::from_secs(u64::MAX)),
        (0..5_000_u64).prop_map(Duration::from_millis),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop::sample::select(&["a", "b", "", "a/"][..]).prop_map(String::from)
}

fn id() -> impl Strategy<Value = WardId> {
    (name(), name()).prop_map(|(node, ward)| WardId::new(node, ward))
}

fn incarnation() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, Just(u64::MAX)]
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::{Backoff, Quarantined, Running, Starting, Stopped, Stopping};
    prop::sample::select(&[Stopped, Starting, Running, Stopping, Backoff, Quarantined][..])
}

fn restart() -> impl Strategy<Value = Restart> {
    prop::sample::select(&[Restart::Permanent, Restart::Transient, Restart::Temporary][..])
}

fn report() -> impl Strategy<Value = WardReport> {
    let timeouts = [0, 1, 2].map(|_| prop::option::of(span()));
    let flags = (any::<bool>(), any::<bool>());
    (name(), prop::option::of(name()), restart(), timeouts, span(), flags, phase(), incarnation()).prop_map(
        |(
            name,
            group,
            restart,
            [stall_timeout, pulse_timeout, start_timeout],
            grace,
            (manual_start, significant),
            phase,
            incarnation,
        )| {
            let group = group.map(Into::into);
            let name = name.into();
            let spec = WardSpec {
                name,
                group,
                restart,
                stall_timeout,
                pulse_timeout,
                start_timeout,
                grace,
                manual_start,
                significant,
                in_process: true,
            };
            WardReport { spec, phase, incarnation, held: false, failed: false }
        },
    )
}

fn group() -> impl Strategy<Value = GroupSpec> {
    use wardkeep_steward::Strategy::{OneForAll, OneForOne, RestForOne};
    let strategy = prop::sample::select(&[OneForOne, OneForAll, RestForOne][..]);
    let intensity = prop_oneof![0..3_u32, Just(u32::MAX)];
    let auto = prop::sample::select(
        &[AutoShutdown::Never, AutoShutdown::AnySignificant, AutoShutdown::AllSignificant][..],
    );
    let inner = (prop::option::of(name()), restart(), any::<bool>(), auto);
    (name(), strategy, intensity, span(), span(), span(), span(), inner).prop_map(
        |(name, strategy, intensity, period, first, max, reset, inner)| GroupSpec {
            name: name.into(),
            strategy,
            intensity,
            period,
            backoff: Backoff { first, max, reset },
            parent: inner.0.map(Into::into),
            restart: inner.1,
            significant: inner.2,
            auto_shutdown: inner.3,
            escalate: Escalate::Node,
        },
    )
}

fn slot() -> impl Strategy<Value = u32> {
    prop_oneof![9 => 0..6_u32, 1 => any::<u32>()]
}

fn beats() -> impl Strategy<Value = Beats> {
    let worked = (slot(), any::<u32>(), any::<u32>(), prop::option::of(span()))
        .prop_map(|(slot, begun, ended, oldest)| WorkBeat { slot, begun, ended, oldest });
    (prop::collection::vec(slot(), 0..4), prop::collection::vec(worked, 0..4))
        .prop_map(|(pulsed, worked)| Beats { pulsed: pulsed.into_iter().collect(), worked })
}

fn event() -> impl Strategy<Value = Event> {
    use ExitKind::{Abandoned, Done, Failed, Panicked, StartFailed, Stopped};
    let kind = prop::sample::select(&[Done, Failed, Panicked, Stopped, Abandoned, StartFailed][..]);
    let attach =
        (name(), 0..3_u128, prop::collection::vec(report(), 0..5), prop::collection::vec(group(), 0..3))
            .prop_map(|(node, boot, wards, groups)| Event::NodeAttached {
                node: node.into(),
                boot,
                wards,
                groups,
            });
    let of_node = (name(), 0..13_u8, span()).prop_map(|(node, what, takes)| match what {
        0 | 8 => Event::NodeLaunchable { node: node.into(), takes, awaited: what == 8 },
        4 => Event::NodeUnlaunchable { node: node.into() },
        5 => Event::LaunchNode { node: node.into(), cause: Cause::default() },
        6 => Event::NodeLaunched { node: node.into() },
        7 => Event::LaunchFailed { node: node.into(), cause: Cause::default() },
        9 => Event::NodeRestartable { node: node.into() },
        10 => Event::ThreadsLeaked { node: node.into(), threads: u32::MAX },
        11 => Event::NodeSlept { node: node.into(), slept: takes },
        12 => Event::RestartTold {
            ward: WardId::new(node, "a"),
            group: Some("b".into()),
            counts_for: "a".into(),
            anew: vec!["b".into()],
            at: takes,
        },
        1 => Event::NodeProcessExited { node: node.into(), cause: Cause::default() },
        goodbye => Event::NodeDetached { node: node.into(), goodbye: goodbye == 2 },
    });
    let reports = (name(), span(), beats()).prop_map(|(node, runtime_lag, beats)| Event::Report {
        node: node.into(),
        runtime_lag,
        beats,
    });
    let of_ward =
        (id(), incarnation(), 0..3_u8, kind).prop_map(|(ward, incarnation, what, kind)| match what {
            0 => Event::WardStarting { ward, incarnation },
            1 => Event::WardRunning { ward, incarnation },
            _ => Event::WardExited { ward, incarnation, kind, cause: Cause::default() },
        });
    let comes = (name(), report()).prop_map(|(node, ward)| Event::WardJoined { node: node.into(), ward });
    let told = (group(), prop::option::of(name()), any::<bool>()).prop_map(|(group, by, described)| {
        let by = by.map(Into::into);
        if described {
            Event::GroupDescribed { group, by }
        } else {
            Event::GroupWithdrawn { group: group.name, by }
        }
    });
    let goes = id().prop_map(|ward| Event::WardLeft { ward });
    let asked = (id(), 0..3_u8).prop_map(|(ward, what)| match what {
        0 => Event::StartWard { ward, cause: Cause::default() },
        1 => Event::StopWard { ward, cause: Cause::default() },
        _ => Event::RestartWard { ward, cause: Cause::default() },
    });
    prop_oneof![3 => attach, 1 => told, 2 => comes, 1 => goes, 2 => of_node, 3 => reports, 6 => of_ward, 2 => asked, 3 => Just(Event::Tick)]
}

fn config() -> impl Strategy<Value = Config> {
    let phi = prop_oneof![Just(8.0), Just(f64::NAN), Just(f64::INFINITY), Just(-1.0)];
    let burst = prop_oneof![0..3_u32, Just(u32::MAX)];
    ([(); 10].map(|()| span()), phi, burst, any::<u64>()).prop_map(
        |(spans, phi_threshold, restart_burst, seed)| {
            let [
                pulse_interval,
                silence_floor,
                silence_ceiling,
                runtime_stall,
                refill,
                relaunch_after,
                own_lateness,
                escalation_pause,
                escalation_gap,
                attend_timeout,
            ] = spans;
            Config {
                pulse_interval,
                silence_floor,
                silence_ceiling,
                phi_threshold,
                runtime_stall,
                restart_burst,
                restart_refill: refill,
                relaunch_after,
                attend_timeout,
                own_lateness,
                escalation_pause,
                escalation_gap,
                leaked_threads: 3,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_sequence_of_events_makes_the_steward_panic_or_spin(
        config in config(), events in prop::collection::vec((span(), event()), 0..60),
    ) {
        let mut steward = Steward::new(config);
        let mut now = Duration::from_secs(1);
        for (pause, event) in events {
            // The end of time comes only at the end of a story.
            now = now.saturating_add(pause.min(Duration::from_secs(3_600)));
            steward.step(now, event);
            let wake = steward.next_wake();
            prop_assert!(wake.is_none_or(|at| at > now));
            let _ = (steward.wards(now).count(), steward.nodes().count(), steward.groups(now).count());
        }
        for _ in 0..200 {
            let Some(at) = steward.next_wake().filter(|at| *at < now + Duration::from_secs(60)) else { break };
            steward.step(at, Event::Tick);
        }
        steward.step(Duration::MAX, Event::Tick);
        steward.step(Duration::MAX, Event::Tick);
    }
}
