//! The launching of nodes' processes: by whom, when, and how often.

use std::time::Duration;

use crate::{
    backoff::Streak,
    core::Steward,
    node::Node,
    types::{Action, Backoff, Cause, NodeName, Time, Verdict, What},
    ward::seconds,
};

/// How it stands with a node's process.
#[derive(Debug, Default)]
pub(crate) struct Launch {
    /// How long the launcher may take.
    takes: Duration,
    /// The node has not attended yet, and the launcher has not started it by itself.
    awaited: bool,
    due: Option<(Time, Cause)>,
    /// From when on (patient) it has been waited for since it was last launched, if it has not attended since.
    last: Option<Time>,
    streak: Streak,
    /// The launcher also ends the old process: that end is no news.
    ends_old: bool,
}

impl Launch {
    /// A session began.
    pub(crate) fn attended(&mut self) {
        (self.awaited, self.ends_old) = (false, false);
        self.heard();
    }

    pub(crate) fn heard(&mut self) {
        (self.due, self.last) = (None, None);
    }

    /// The launcher is told.
    fn begin(&mut self, patient: Time, exited: bool) {
        (self.awaited, self.due) = (false, None);
        (self.last, self.ends_old) = (Some(patient.saturating_add(self.takes)), !exited);
    }
}

impl Node {
    /// It has never attended, and is to.
    pub(crate) fn is_awaited(&self) -> bool {
        self.heard.is_none() && self.launch.as_ref().is_some_and(|launch| launch.awaited)
    }
}

impl Steward {
    pub(crate) fn launchable(&mut self, name: &NodeName, takes: Duration, awaited: bool) {
        let patient = self.patient();
        let node = self.node_entry(name);
        if node.heard.is_none() && node.launch.is_none() {
            node.heard_patient = patient;
        }
        // Its process is there, or is being started now.
        let last = (!awaited && !node.attached).then_some(patient.saturating_add(takes));
        let awaited = awaited && node.heard.is_none();
        let launch = node.launch.get_or_insert_with(|| Launch { last, ..Launch::default() });
        (launch.takes, launch.awaited) = (takes, awaited);
        self.touched_nodes.insert(name.clone());
    }

    pub(crate) fn unlaunchable(&mut self, name: &NodeName) {
        let Some(node) = self.node_mut(name) else { return };
        node.launch = None;
        if node.heard.is_none() {
            self.forget(name);
        }
    }

    pub(crate) fn process_exited(&mut self, name: &NodeName, cause: &Cause) {
        let Some(node) = self.node_mut(name) else { return };
        if node.launch.as_mut().is_some_and(|launch| std::mem::take(&mut launch.ends_old)) {
            return;
        }
        node.exited = true;
        self.judge_node(name, Verdict::Unreachable, cause.clone());
        self.plan_launch(name, cause.clone());
    }

    pub(crate) fn asked_launch(&mut self, name: &NodeName, cause: Cause) {
        let patient = self.patient();
        let Some(node) = self.node_mut(name) else { return };
        let exited = node.exited;
        let Some(launch) = &mut node.launch else { return };
        launch.begin(patient, exited);
        self.note(Some(name), None, What::NodeLaunch { delay: Duration::ZERO }, cause.clone());
        self.out.push(Action::Launch { node: name.clone(), cause });
    }

    pub(crate) fn launched(&mut self, name: &NodeName) {
        let patient = self.patient();
        let launch = self.node_mut(name).and_then(|node| node.launch.as_mut());
        if let Some(last) = launch.and_then(|launch| launch.last.as_mut()) {
            *last = patient;
        }
    }

    pub(crate) fn launch_failed(&mut self, name: &NodeName, cause: Cause) {
        if self.ready(name) {
            return;
        }
        self.judge_node(name, Verdict::Unreachable, cause.clone());
        self.plan_launch(name, cause);
    }

    fn plan_launch(&mut self, name: &NodeName, cause: Cause) {
        let (now, seed) = (self.now, self.config.seed);
        let Some(node) = self.node_mut(name) else { return };
        let Some(launch) = node.launch.as_mut().filter(|launch| launch.due.is_none()) else { return };
        let delay = launch.streak.next(&Backoff::default(), now, seed, name);
        launch.due = Some((now.saturating_add(delay), cause.clone()));
        self.note(Some(name), None, What::NodeLaunch { delay }, cause);
    }

    pub(crate) fn wake_launch(&mut self, name: &NodeName, patient: Time) {
        let now = self.now;
        let Some(node) = self.node_mut(name) else { return };
        let (since, exited) = (node.heard_patient, node.exited);
        let Some(launch) = &mut node.launch else { return };
        if let Some((_, cause)) = launch.due.take_if(|(at, _)| *at <= now) {
            launch.begin(patient, exited);
            return self.out.push(Action::Launch { node: name.clone(), cause });
        }
        let last = launch.last;
        if self.nodes.get(name).and_then(|node| self.launch_planned_at(node)).is_none_or(|at| patient < at) {
            return;
        }
        let ago = |since| seconds(patient.saturating_sub(since));
        let reason = match last {
            Some(last) => format!("launched {} ago, and has not attended since", ago(last)),
            None => format!("unreachable for {}", ago(since)),
        };
        let cause = Cause { reason, ..Cause::default() };
        self.judge_node(name, Verdict::Unreachable, cause.clone());
        self.plan_launch(name, cause);
    }

    /// When (patient) the patience ends with a process that was launched and does not attend, or with a
    /// node that is unreachable.
    fn launch_planned_at(&self, node: &Node) -> Option<Time> {
        let launch = node.launch.as_ref().filter(|launch| launch.due.is_none())?;
        match launch.last {
            Some(last) => Some(last.saturating_add(self.config.attend_timeout)),
            None => (node.verdict == Verdict::Unreachable)
                .then(|| node.heard_patient.saturating_add(self.config.relaunch_after)),
        }
    }

    /// When the launcher of a node is to be thought of again.
    pub(crate) fn launch_wake(&self, node: &Node) -> Option<Time> {
        let due = node.launch.as_ref().and_then(|launch| launch.due.as_ref());
        due.map(|(at, _)| *at).or(self.launch_planned_at(node).map(|at| self.real(at)))
    }

    /// Until when (patient) a node that has never attended is waited for.
    pub(crate) fn awaited_until(&self, node: &Node) -> Time {
        node.heard_patient.saturating_add(self.config.relaunch_after)
    }
}
