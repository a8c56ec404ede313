//! What operators wish for: checked against what is known, then told to the steward or the node.

use std::sync::Arc;

use wardkeep_node::wire;
use wardkeep_proto::{
    Error,
    v1::{self, command},
};
use wardkeep_steward::{Cause, Event, Verdict, WardId};

use super::{
    SupervisorError,
    fleet::Fleet,
    history::{Aim, Intent},
    resume,
};

/// What operators wish for.
pub(super) enum Wish {
    StartWard(WardId),
    StopWard(WardId),
    RestartWard(WardId),
    RestartNode { node: String, drain: Option<prost_types::Duration> },
    Drain { node: String, on: bool },
}

impl Fleet {
    /// Takes a wish on, or says why not.
    pub(super) fn wish(&mut self, wish: Wish, cause: Cause, actor: String) -> Result<(), Error> {
        self.actor = actor;
        match wish {
            Wish::StartWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::StartWard { ward, cause });
            }
            Wish::StopWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::StopWard { ward, cause });
            }
            Wish::RestartWard(ward) => {
                self.reachable_ward(&ward)?;
                self.step(Event::RestartWard { ward, cause });
            }
            Wish::RestartNode { node, drain } => {
                let Some(node) = self.in_band(&node, &cause)? else { return Ok(()) };
                let drain_ms =
                    wire::to_duration(drain).map(|d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX));
                let kind = command::Kind::RestartNode(v1::RestartNode { drain_timeout: drain });
                let intent = Intent { drain_ms, ..self.intent(Aim::RestartNode, &node, "", 0, &cause) };
                self.tally.node_restart_asked();
                let command = self.order(intent, &node, kind, &cause);
                if let Some(command) = command.filter(|_| self.settings.launchable.contains_key(&*node)) {
                    self.deaf.told(node, command, cause);
                }
            }
            Wish::Drain { node, on } => {
                let node = self.reachable_node(&node)?;
                let kind = command::Kind::Drain(v1::Drain { on });
                let aim = if on { Aim::Drain } else { Aim::Undrain };
                let intent = self.intent(aim, &node, "", 0, &cause);
                self.order(intent, &node, kind, &cause);
            }
        }
        Ok(())
    }

    /// The node, if it can be told; `None`: it cannot, and its launcher restarts it.
    fn in_band(&mut self, name: &str, cause: &Cause) -> Result<Option<Arc<str>>, Error> {
        let known = self.steward.nodes().find(|view| **view.name == *name);
        let away = known.filter(|view| !view.attached || view.verdict == Verdict::Unreachable);
        let away = away.map(|view| view.name.clone());
        if let Some(node) = away
            && self.launch(&node, cause)
        {
            return Ok(None);
        }
        self.reachable_node(name).map(Some)
    }

    /// The ID of the command, if the node has a session.
    fn order(&mut self, intent: Intent, node: &Arc<str>, kind: command::Kind, cause: &Cause) -> Option<u64> {
        let actor = self.actor.clone();
        let event = match intent.aim {
            Aim::RestartNode => v1::EventKind::NodeRestart,
            _ => v1::EventKind::Operator,
        };
        self.tell(event, node, format!("{}: {}", resume::what(intent.aim), cause.reason), &actor);
        let restart = intent.aim == Aim::RestartNode;
        self.chronicle.intend(Intent { asked: true, actor, ..intent });
        let session = self.nodes.get(node).and_then(|record| record.session.as_ref());
        let id = session.map(|session| session.next_command);
        self.command(node, kind, cause, restart);
        id
    }

    pub(super) fn reachable_node(&self, name: &str) -> Result<Arc<str>, Error> {
        match self.nodes.get_key_value(name) {
            Some((name, record)) if record.session.is_some() => Ok(name.clone()),
            None if !self.is_known(name) => Err(SupervisorError::NoSuchNode(name.to_owned()).into()),
            _ => Err(SupervisorError::NotAttending(name.to_owned()).into()),
        }
    }

    fn reachable_ward(&self, ward: &WardId) -> Result<(), Error> {
        let node = self.reachable_node(&ward.node)?;
        match self.nodes.get(&node).and_then(|record| record.slot(&ward.ward)) {
            Some(_) => Ok(()),
            None => {
                let (node, ward) = (node.to_string(), ward.ward.to_string());
                Err(SupervisorError::NoSuchWard { node, ward }.into())
            }
        }
    }
}
