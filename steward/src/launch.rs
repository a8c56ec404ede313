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
        let (rank, patient) = (self.next_rank, self.patient());
        let node = self.nodes.entry(name.clone()).or_insert_with(|| Node { rank, ..Node::default() });
        if node.heard.is_none() && node.launch.is_none() {
            node.heard_patient = patient;
        }
        let awaited = awaited && node.heard.is_none();
        let launch = node.launch.get_or_insert_default();
        (launch.takes, launch.awaited) = (takes, awaited);
        self.next_rank += 1;
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
        let relaunch_after = self.config.relaunch_after;
        let Some(node) = self.node_mut(name).filter(|node| node.verdict == Verdict::Unreachable) else {
            return;
        };
        let (since, exited) = (node.heard_patient, node.exited);
        let Some(launch) = &mut node.launch else { return };
        if let Some((_, cause)) = launch.due.take_if(|(at, _)| *at <= now) {
            launch.begin(patient, exited);
            self.out.push(Action::Launch { node: name.clone(), cause });
        } else if launch.due.is_none() {
            let since = launch.last.unwrap_or(since);
            if patient >= since.saturating_add(relaunch_after) {
                let reason = format!("unreachable for {}", seconds(patient.saturating_sub(since)));
                self.plan_launch(name, Cause { reason, ..Cause::default() });
            }
        }
    }

    /// When the launcher of an unreachable node is to be thought of again.
    pub(crate) fn launch_wake(&self, launch: &Launch, heard: Time) -> Time {
        match &launch.due {
            Some((at, _)) => *at,
            None => {
                let since = launch.last.unwrap_or(heard);
                self.real(since.saturating_add(self.config.relaunch_after))
            }
        }
    }

    /// Until when (patient) a node that has never attended is waited for.
    pub(crate) fn awaited_until(&self, node: &Node) -> Time {
        node.heard_patient.saturating_add(self.config.relaunch_after)
    }
}
