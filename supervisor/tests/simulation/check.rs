//! What holds when all is over.

use std::{collections::BTreeMap, time::Duration};

use wardkeep::daemon::testing::Disk;
use wardkeep_proto::v1::{self, EventKind, WardState};

use super::{
    book::{Book, Place},
    cluster::NODES,
    hosts::WARDS,
};

fn ward(fleet: &v1::Fleet, (node, name): Place) -> Option<&v1::Ward> {
    let named = |ward: &&v1::Ward| ward.spec.as_ref().is_some_and(|spec| spec.name == name);
    fleet.wards.iter().filter(|ward| ward.node == node).find(named)
}

pub fn state(fleet: &v1::Fleet, place: Place) -> Option<WardState> {
    ward(fleet, place).map(v1::Ward::state)
}

fn places() -> impl Iterator<Item = Place> {
    NODES.into_iter().flat_map(|node| WARDS.map(|ward| (node, ward)))
}

/// Nothing is half done: wards run and do what they are there for, or rest because someone decided so.
pub fn settled(fleet: &v1::Fleet, disk: &Disk, book: &Book) -> Result<(), String> {
    attended(fleet)?;
    for place in places() {
        let Some(ward) = ward(fleet, place) else { return Err(format!("{place:?} is not known")) };
        let rests = match ward.state() {
            WardState::Running => false,
            WardState::Stopped | WardState::Quarantined if ward.held => true,
            _ => return Err(format!("{place:?} is left half done: {ward:?}")),
        };
        if book.hangs(place) && !rests {
            return Err(format!("{place:?} hangs, and was not restarted"));
        }
        if place.1 != "sum" && book.lives(place).is_none() != rests {
            return Err(format!("{place:?} is said to be {:?} and is not", ward.state()));
        }
    }
    match disk.open_intents().as_slice() {
        [] => Ok(()),
        open => Err(format!("intents are left: {open:?}")),
    }
}

fn attended(fleet: &v1::Fleet) -> Result<(), String> {
    for name in NODES {
        let known = |node: &&v1::Node| node.info.as_ref().is_some_and(|info| info.name == name);
        match fleet.nodes.iter().find(known) {
            Some(node) if node.attending && node.verdict() == v1::Verdict::Healthy => {}
            node => return Err(format!("{name} is not back: {node:?}")),
        }
    }
    Ok(())
}

/// All wards run, the incarnations that the supervisor knows.
pub fn healed(fleet: &v1::Fleet, disk: &Disk, book: &Book) -> Result<(), String> {
    settled(fleet, disk, book)?;
    if let Some(node) = fleet.nodes.iter().find(|node| node.draining) {
        return Err(format!("it still drains: {node:?}"));
    }
    for place in places() {
        let Some(ward) = ward(fleet, place).filter(|ward| ward.state() == WardState::Running) else {
            return Err(format!("{place:?} does not run: {:?}", ward(fleet, place)));
        };
        if place.1 != "sum" && book.lives(place) != Some(ward.incarnation) {
            let (known, lives) = (ward.incarnation, book.lives(place));
            return Err(format!("{place:?} runs as incarnation {known} they say, as {lives:?} it does"));
        }
    }
    Ok(())
}

/// When a restart was decided; by which node and boot, if by one that was alone.
type Restart<'a> = (Duration, Option<(&'a str, &'a str)>);

/// No group was restarted more often than it may be, unless it gave up or an operator stepped in. A node that
/// decides alone knows what it has done since it booted, and what it was told before it was left alone; a supervisor
/// knows all that it was told.
pub fn intensity(events: &[v1::Event]) -> Result<(), String> {
    let mut restarts: BTreeMap<&str, Vec<Restart<'_>>> = BTreeMap::new();
    for event in events {
        let at = event.at.unwrap_or_default();
        let at = Duration::new(at.seconds.unsigned_abs(), at.nanos.unsigned_abs());
        match (event.kind(), &event.decision) {
            (EventKind::Operator, _) if !event.ward.is_empty() => drop(restarts.remove(event.group.as_str())),
            (EventKind::WardRestart, Some(decision)) => {
                let period = decision.period.unwrap_or_default();
                // Dates are rounded to turns.
                let period = Duration::new(period.seconds.unsigned_abs(), 0) - Duration::from_millis(50);
                let alone = event.text.ends_with("(by the node's own steward)");
                let by = alone.then_some((event.node.as_str(), event.boot_id.as_str()));
                let seen = restarts.entry(&event.group).or_default();
                seen.push((at, by));
                let counts =
                    |(then, of): &&Restart<'_>| at.saturating_sub(*then) <= period && (!alone || *of == by);
                if seen.iter().filter(counts).count() > decision.intensity as usize {
                    return Err(format!("{} was restarted too often: {seen:?}", event.group));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
