//! What the supervisor remembers of a node beside what its steward knows, and the pictures made of
//! both.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;
use uuid::Uuid;
use wardkeep_node::wire;
use wardkeep_proto::{duration, timestamp, v1};
use wardkeep_steward::{
    Beats, GroupSpec, MAX_DEPTH, NodeView, Phase, Slots, Steward, Time, Verdict, WardView,
};

use super::{fleet::SessionId, launcher::How};

/// One node, present or past.
pub(super) struct NodeRecord {
    pub(super) info: v1::NodeInfo,
    pub(super) boot: Uuid,
    pub(super) session: Option<Session>,
    /// By slot.
    wards: BTreeMap<u32, Known>,
    slots: HashMap<Arc<str>, u32>,
    /// The lowest slot that a ward which joins may have: none is used twice in a session.
    next_slot: u32,
    /// So many have been told of in this session.
    told: u32,
    /// Groups it declares.
    pub(super) groups: Vec<v1::GroupSpec>,
    pub(super) draining: bool,
    pub(super) leaked_threads: u32,
    pub(super) last_report_at: Option<DateTime<Utc>>,
    /// The latest that was told of its own steward's deeds, as it numbers them in this boot.
    pub(super) story: u64,
    /// When its session broke off, if it did not say goodbye.
    pub(super) lost_at: Option<Instant>,
}

/// What is known of a ward.
struct Known {
    name: Arc<str>,
    ward: v1::Ward,
    sign: Sign,
    /// Its slot as the steward counts: in the order in which wards were told of.
    place: u32,
    said: Said,
}

impl Known {
    fn new(ward: v1::Ward, place: u32) -> Self {
        let name = ward.spec.as_ref().map(|spec| spec.name.as_str()).unwrap_or_default().into();
        let said = said(ward.incarnation, ward.state());
        Self { name, ward, sign: Sign::default(), place, said }
    }
}

/// The latest incarnation that a node has told of, and how far that had come. Within a boot it only grows.
type Said = (u64, u8);

fn said(incarnation: u64, state: v1::WardState) -> Said {
    let stage = match state {
        v1::WardState::Starting => 0,
        v1::WardState::Running => 1,
        v1::WardState::Stopping => 2,
        _ => 3,
    };
    (incarnation, stage)
}

/// The last sign of life of a ward, as reports tell: nothing of one that neither pulses nor works.
#[derive(Clone, Copy, Default)]
struct Sign {
    lived: Option<Instant>,
    /// Age of the oldest unit of work, and when that was said.
    oldest: Option<(Duration, Instant)>,
}

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) down: mpsc::Sender<Result<v1::StewardMessage, Status>>,
    pub(super) next_command: u64,
}

impl NodeRecord {
    pub(super) fn new(hello: &v1::Hello, boot: Uuid, session: Session, peer: Option<IpAddr>) -> Self {
        let mut info = hello.node.clone().unwrap_or_default();
        info.uri = reachable_at(&info.uri, peer);
        let known = hello.wards.iter().cloned().zip(0..).map(|(ward, place)| Known::new(ward, place));
        let wards: BTreeMap<_, _> = slots(hello).zip(known).collect();
        Self {
            slots: wards.iter().map(|(slot, known)| (known.name.clone(), *slot)).collect(),
            next_slot: wards.last_key_value().map_or(0, |(slot, _)| slot.saturating_add(1)),
            told: u32::try_from(wards.len()).unwrap_or(u32::MAX),
            wards,
            groups: hello.groups.clone(),
            info,
            boot,
            session: Some(session),
            draining: hello.draining,
            leaked_threads: 0,
            last_report_at: None,
            story: hello.history.iter().map(|event| event.sequence).max().unwrap_or_default(),
            lost_at: None,
        }
    }

    /// Whether the node has said more than this Hello of the same boot does, which was then sent before, and comes late.
    pub(super) fn is_ahead_of(&self, hello: &v1::Hello) -> bool {
        let behind = |(ward, slot): (&v1::Ward, u32)| {
            let name = ward.spec.as_ref().map(|spec| spec.name.as_str()).unwrap_or_default();
            // One that left and joined again has another slot, and counts from the beginning.
            let known = self.slot(name).filter(|known| *known >= slot).and_then(|slot| self.wards.get(&slot));
            known.is_some_and(|known| known.said > said(ward.incarnation, ward.state()))
        };
        hello.wards.iter().zip(slots(hello)).any(behind)
    }

    /// A ward joins, or one that is known is described anew.
    ///
    /// # Errors
    /// One line: the slot is another ward's, or was.
    pub(super) fn join(&mut self, slot: u32, ward: v1::Ward) -> Result<(), String> {
        let mut known = Known::new(ward, self.told);
        match (self.slots.get(&known.name), self.wards.get(&slot)) {
            (Some(place), _) if *place == slot => {
                if let Some(before) = self.wards.get(&slot) {
                    (known.sign, known.place) = (before.sign, before.place);
                }
            }
            (None, None) if slot >= self.next_slot => {
                self.next_slot = slot.saturating_add(1);
                self.told += 1;
            }
            _ => return Err(format!("ward {} joins in slot {slot}, which is not free", known.name)),
        }
        self.slots.insert(known.name.clone(), slot);
        self.wards.insert(slot, known);
        Ok(())
    }

    /// A ward leaves: its name, if there is one in that slot.
    pub(super) fn leave(&mut self, slot: u32) -> Option<Arc<str>> {
        let known = self.wards.remove(&slot)?;
        self.slots.remove(&known.name);
        Some(known.name)
    }

    pub(super) fn len(&self) -> usize {
        self.wards.len()
    }

    /// The ward in a slot.
    pub(super) fn ward(&self, slot: u32) -> Option<&v1::Ward> {
        self.wards.get(&slot).map(|known| &known.ward)
    }

    /// The name of the ward in a slot.
    pub(super) fn name(&self, slot: u32) -> Option<&Arc<str>> {
        self.wards.get(&slot).map(|known| &known.name)
    }

    /// Slots are below this.
    pub(super) fn slots_used(&self) -> usize {
        self.next_slot as usize
    }

    /// A report arrived. From slots of this session to those that the steward counts: without those of
    /// wards that had left before the session began, and without wards that have left since.
    pub(super) fn hear(&mut self, beats: &mut Beats) {
        let now = Instant::now();
        let wards = &mut self.wards;
        let mut pulsed = Slots::default();
        for run in beats.pulsed.runs() {
            for (_, known) in wards.range_mut(run.clone()) {
                known.sign.lived = Some(now);
                pulsed.push(known.place);
            }
        }
        beats.pulsed = pulsed;
        beats.worked.retain_mut(|beat| {
            let Some(Known { sign, place, .. }) = wards.get_mut(&beat.slot) else { return false };
            if beat.begun > 0 || beat.ended > 0 {
                sign.lived = Some(now);
            }
            sign.oldest = beat.oldest.map(|age| (age, now));
            beat.slot = *place;
            true
        });
    }

    /// What was last known of a ward, or of the node alone.
    pub(super) fn evidence(&self, ward: Option<&str>) -> v1::Evidence {
        let sign = ward.and_then(|ward| self.wards.get(&self.slot(ward)?)).map(|known| known.sign);
        let oldest = sign.and_then(|sign| sign.oldest).map(|(age, at)| age.saturating_add(at.elapsed()));
        let silent = self.last_report_at.and_then(|at| (Utc::now() - at).to_std().ok());
        v1::Evidence {
            last_pulse: sign.and_then(|sign| sign.lived).map(|at| duration(at.elapsed())),
            oldest_work: oldest.map(duration),
            last_report: silent.map(duration),
        }
    }

    /// The group of the ward in a slot.
    pub(super) fn group(&self, slot: u32) -> String {
        let spec = self.ward(slot).and_then(|ward| ward.spec.as_ref());
        match spec {
            Some(spec) if !spec.group.is_empty() => spec.group.clone(),
            _ => GroupSpec::of_node(&self.info.name).name.to_string(),
        }
    }

    pub(super) fn slot(&self, ward: &str) -> Option<u32> {
        self.slots.get(ward).copied()
    }

    /// It was told to keep a ward down, or that it need not.
    pub(super) fn hold(&mut self, slot: u32, held: bool) {
        if let Some(known) = self.wards.get_mut(&slot) {
            known.ward.held = held;
        }
    }

    /// Takes over what programs use.
    pub(super) fn measured(&mut self, usages: v1::Usages) {
        for measured in usages.wards {
            if let Some(known) = self.wards.get_mut(&measured.slot) {
                known.ward.usage = measured.usage;
            }
        }
    }

    /// Takes over a change that the node told.
    pub(super) fn apply(&mut self, change: &v1::WardChange) {
        let Some(Known { ward, sign, said: known, .. }) = self.wards.get_mut(&change.slot) else { return };
        *known = said(change.incarnation, change.state());
        ward.status.clone_from(&change.status);
        ward.fenced_replies = change.fenced_replies;
        if change.state() == v1::WardState::Starting {
            *sign = Sign::default();
        }
        if matches!(change.state(), v1::WardState::Starting | v1::WardState::Stopped) {
            ward.usage = None;
        }
        if change.state() == v1::WardState::Starting {
            ward.started_at = change.at;
            ward.held = false;
        }
        if let Some(error) = change.exit.as_ref().and_then(|exit| exit.error.as_ref()) {
            ward.last_error_id.clone_from(&error.id);
        }
    }
}

/// The slots of the wards in a Hello.
pub(super) fn slots(hello: &v1::Hello) -> impl Iterator<Item = u32> {
    let count = u32::try_from(hello.wards.len()).unwrap_or(u32::MAX);
    let positions = if hello.slots.is_empty() { 0..count } else { 0..0 };
    positions.chain(hello.slots.iter().copied())
}

/// "Any address" means: the one the node's session comes from.
fn reachable_at(uri: &str, peer: Option<IpAddr>) -> String {
    let (Ok(parsed), Some(peer)) = (uri.parse::<http::Uri>(), peer) else { return uri.to_owned() };
    let host = parsed.host().unwrap_or_default();
    if !matches!(host, "0.0.0.0" | "[::]" | "::") {
        return uri.to_owned();
    }
    let port = parsed.port_u16().unwrap_or(80);
    format!("{}://{}", parsed.scheme_str().unwrap_or("http"), std::net::SocketAddr::new(peer, port))
}

/// Everything that is known, as one picture.
pub(super) fn fleet(
    supervisor: v1::Supervisor,
    nodes: &BTreeMap<Arc<str>, NodeRecord>,
    launchable: &BTreeMap<String, How>,
    steward: &Steward,
    now: Time,
) -> v1::Fleet {
    let node_views: BTreeMap<_, _> = steward.nodes().map(|view| (view.name.clone(), view)).collect();
    let mut wards = Vec::new();
    for view in steward.wards(now) {
        let Some(record) = nodes.get(&view.id.node) else { continue };
        let known = record.slot(&view.id.ward).and_then(|slot| record.ward(slot));
        let unreachable =
            node_views.get(&view.id.node).is_none_or(|node| node.verdict == Verdict::Unreachable);
        wards.push(ward(&view, known, unreachable));
    }
    v1::Fleet {
        at: Some(timestamp(Utc::now())),
        supervisor: Some(supervisor),
        nodes: node_views
            .values()
            .map(|view| node(nodes.get(view.name), view, launchable.get(&**view.name).copied()))
            .collect(),
        wards,
        groups: groups(steward, now),
    }
}

fn node(record: Option<&NodeRecord>, view: &NodeView<'_>, launcher: Option<How>) -> v1::Node {
    let launcher = launcher.map(How::word).unwrap_or_default().to_owned();
    let Some(record) = record else {
        // One that was launched and has not attended yet: an operator wants to know of it.
        let info = v1::NodeInfo { name: view.name.to_string(), ..Default::default() };
        let verdict = match view.verdict {
            Verdict::Healthy => v1::Verdict::Unspecified,
            known => wire::verdict(known),
        };
        return v1::Node { info: Some(info), verdict: verdict.into(), launcher, ..Default::default() };
    };
    v1::Node {
        info: Some(record.info.clone()),
        verdict: wire::verdict(view.verdict).into(),
        attending: record.session.is_some(),
        draining: record.draining,
        last_report_at: record.last_report_at.map(timestamp),
        leaked_threads: record.leaked_threads,
        launcher,
        suspected: view.suspected,
    }
}

fn ward(view: &WardView<'_>, known: Option<&v1::Ward>, unreachable: bool) -> v1::Ward {
    let state = if unreachable && matches!(view.phase, Phase::Running | Phase::Starting | Phase::Stopping) {
        v1::WardState::Unknown
    } else {
        wire::state(view.phase)
    };
    let mut ward = known.cloned().unwrap_or_default();
    ward.node = view.id.node.to_string();
    ward.state = state.into();
    ward.suspected = view.suspected;
    ward.verdict = if unreachable { v1::Verdict::Unreachable } else { wire::verdict(view.verdict) }.into();
    ward.incarnation = view.incarnation;
    ward.restarts = view.restarts;
    if let Some(id) = view.last_error_id {
        ward.last_error_id = id.to_string();
    }
    ward.work_in_progress = view.in_progress;
    ward.work_done = view.work_ended;
    ward.oldest_work = view.oldest_work.map(duration);
    ward
}

fn groups(steward: &Steward, now: Time) -> Vec<v1::Group> {
    steward
        .groups(now)
        .map(|view| v1::Group {
            spec: Some(wire::group_spec_message(view.spec)),
            members: view.members.iter().map(ToString::to_string).collect(),
            recent_restarts: view.recent,
            gave_up: view.gave_up,
        })
        .collect()
}

/// A group and those it is in, innermost first.
pub(super) fn chain(fleet: &v1::Fleet, group: &str) -> Vec<String> {
    let spec =
        |name: &str| fleet.groups.iter().filter_map(|g| g.spec.as_ref()).find(|spec| spec.name == name);
    let parent = |name: &String| spec(name).map(|spec| spec.parent.clone()).filter(|name| !name.is_empty());
    // The specs are as they were declared: a circle is possible in them.
    std::iter::successors(Some(group.to_owned()), parent).take(MAX_DEPTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_address_means_the_one_the_session_comes_from() {
        let peer = Some("10.1.2.3".parse().unwrap());
        assert_eq!(reachable_at("http://0.0.0.0:7500", peer), "http://10.1.2.3:7500");
        assert_eq!(
            reachable_at("http://[::]:7500", Some("fd00::1".parse().unwrap())),
            "http://[fd00::1]:7500"
        );
        assert_eq!(reachable_at("http://node-1:7500", peer), "http://node-1:7500");
        assert_eq!(reachable_at("garbage", peer), "garbage");
    }
}
