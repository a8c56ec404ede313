//! What programs need done now and then: the guard tended, their use of the machine looked at, and
//! the orphans reaped that this process inherits where it is PID 1 or a subreaper.
//!
//! It does not make itself a subreaper: that would be for the whole process, which may have children
//! of its own, and nothing would be healed by it. Groups end with their programs in any case.

use std::time::Duration;

use nix::{
    sys::{
        prctl,
        wait::{WaitPidFlag, waitpid},
    },
    unistd::{Pid, getpgrp, getpid, getsid},
};
use tokio::task::JoinSet;
use wardkeep_proto::v1;

use crate::{
    census::{Census, Orphans, Us},
    host::Host,
};

/// Between two looks; where looking takes long, for longer.
const LOOKS: Duration = Duration::from_secs(2);
/// Looking may take one part in so many of the time ...
const SHARE: u32 = 100;
/// ... but on a machine where everything takes long it is done all the same.
const FAR_APART: Duration = Duration::from_secs(10);

/// See the [module](self).
#[derive(Default)]
pub(super) struct Tending {
    next: Duration,
    looks: JoinSet<(Census, Duration)>,
    orphans: Orphans,
}

impl Tending {
    /// To be called often; it seldom does anything, and never waits. Says what programs use when that
    /// has been looked at.
    pub(super) fn turn(&mut self, host: &mut Host, now: Duration) -> Option<v1::Usages> {
        let mut usages = None;
        while let Some(look) = self.looks.try_join_next() {
            let Ok((census, took)) = look else { continue };
            self.next = now + LOOKS.max((took * SHARE).min(FAR_APART));
            usages = Some(host.measure(&census)).filter(|usages| !usages.wards.is_empty());
            if inherits_orphans() {
                self.reap(host, &census, now);
            }
        }
        if now < self.next || !self.looks.is_empty() {
            return usages;
        }
        self.next = now + LOOKS;
        host.guard().tend();
        if host.runs_programs() || inherits_orphans() {
            self.looks.spawn_blocking(|| {
                let begun = tokio::time::Instant::now();
                let census = Census::take();
                (census, begun.elapsed())
            });
        }
        usages
    }

    fn reap(&mut self, host: &Host, census: &Census, now: Duration) {
        let Ok(session) = getsid(None) else { return };
        let us = Us { pid: getpid().as_raw(), group: getpgrp().as_raw(), session: session.as_raw() };
        let guard = host.guard();
        let due = self.orphans.due(census, us, now, |pid| guard.knows(pid), |group| guard.knows_group(group));
        for pid in due {
            if let Err(error) = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)) {
                tracing::debug!(pid, %error, "an orphan was not reaped");
            }
        }
    }
}

fn inherits_orphans() -> bool {
    getpid().as_raw() == 1 || prctl::get_child_subreaper().unwrap_or_default()
}
