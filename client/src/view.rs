//! The members known now, and the order in which a call asks them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use crate::{
    channel::{Dialer, Link},
    error::CallError,
    member::Member,
};

struct Peer {
    member: Member,
    link: Arc<Link>,
}

/// One immutable picture of the members.
#[derive(Default)]
struct View {
    peers: Vec<Peer>,
}

/// The present picture, replaced as a whole. A member that stays at its address keeps its
/// connection; the connection of one that is gone closes when the last call on it ends.
pub(crate) struct Members {
    dialer: Dialer,
    view: ArcSwap<View>,
    published: watch::Sender<Arc<[Member]>>,
    turn: AtomicUsize,
}

impl Members {
    pub(crate) fn new(dialer: Dialer, members: Vec<Member>) -> Self {
        let published = watch::Sender::new(Arc::from([]));
        let this = Self { dialer, view: ArcSwap::default(), published, turn: AtomicUsize::new(0) };
        this.replace(members);
        this
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<[Member]>> {
        self.published.subscribe()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.view.load().peers.is_empty()
    }

    /// Only one caller at a time: the builder, then the follower of the directory.
    pub(crate) fn replace(&self, members: Vec<Member>) {
        let old = self.view.load_full();
        let mut links: HashMap<(&str, &str), &Arc<Link>> = old
            .peers
            .iter()
            .map(|p| ((p.link.peer.name.as_str(), p.link.peer.uri.as_str()), &p.link))
            .collect();
        let peers = members.iter().map(|member| {
            let known = links.remove(&(member.name.as_str(), member.uri.as_str()));
            let link = known.cloned().unwrap_or_else(|| Arc::new(Link::new(member, &self.dialer)));
            Peer { member: member.clone(), link }
        });
        self.view.store(Arc::new(View { peers: peers.collect() }));
        self.published.send_replace(members.into());
    }

    /// The members that may be asked for a method, in the order to ask them: reachable ones
    /// first, then those with the fewest calls in flight, taking turns among equals.
    ///
    /// Those that are said not to be ready are asked only if none is. What is said of them is old then, or the
    /// one who says it has lost sight of them all: they know better themselves, and refuse at once if it is so.
    pub(crate) fn order(&self, method: &str, now: Instant) -> Result<Vec<Arc<Link>>, CallError> {
        let view = self.view.load();
        if view.peers.is_empty() {
            return Err(CallError::NoMembers { method: method.to_owned() });
        }
        let service = method.trim_start_matches('/').split('/').next().unwrap_or_default();
        // Services that nobody is known to offer (health, reflection) are everyone's.
        let someone_offers = view.peers.iter().any(|p| p.member.answers(service).is_some());
        let offers = |p: &&Peer| !someone_offers || p.member.answers(service).is_some();
        let ready =
            |p: &&Peer| p.member.ready && (!someone_offers || p.member.answers(service) == Some(true));
        let mut links: Vec<_> = view.peers.iter().filter(ready).map(|p| p.link.clone()).collect();
        if links.is_empty() {
            links.extend(view.peers.iter().filter(offers).map(|p| p.link.clone()));
        }
        let turn = self.turn.fetch_add(1, Relaxed) % links.len();
        links.rotate_left(turn);
        links.sort_by_cached_key(|l| (l.is_shunned(now), l.in_flight()));
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{channel::CONNECT_TIMEOUT, member::Offer};

    fn members(list: impl IntoIterator<Item = Member>) -> Members {
        let dialer = Dialer::new(None, CONNECT_TIMEOUT, Arc::default());
        Members::new(dialer, list.into_iter().collect())
    }

    fn member(name: &str) -> Member {
        Member::new(name, format!("http://{name}:1"))
    }

    fn names(members: &Members) -> Vec<String> {
        let order = members.order("/a.B/C", Instant::now()).unwrap();
        order.iter().map(|l| l.peer.name.clone()).collect()
    }

    #[test]
    fn equal_members_take_turns() {
        let members = members(["a", "b", "c"].map(member));
        assert_eq!(names(&members), ["a", "b", "c"]);
        assert_eq!(names(&members), ["b", "c", "a"]);
        assert_eq!(names(&members), ["c", "a", "b"]);
    }

    #[test]
    fn the_busy_and_the_unreachable_come_last() {
        let members = members(["a", "b", "c"].map(member));
        let order = members.order("/a.B/C", Instant::now()).unwrap();
        order[0].shun(Instant::now());
        let _busy = order[1].enter();
        assert_eq!(names(&members), ["c", "b", "a"]);
    }

    #[test]
    fn members_that_are_not_ready_or_do_not_offer_the_service_are_not_asked() {
        let offer = |ready| Offer { service: "a.B".into(), ward: "w".into(), incarnation: 1, ready };
        let mut offers = member("offers");
        offers.offers.push(offer(true));
        let mut restarting = member("restarting");
        restarting.offers.push(offer(false));
        let all = members([offers, restarting, member("other"), member("draining").with_ready(false)]);
        assert_eq!(names(&all), ["offers"]);
        let health = all.order("/grpc.health.v1.Health/Check", Instant::now()).unwrap();
        assert_eq!(health.len(), 3);
    }

    #[test]
    fn if_none_is_ready_those_that_offer_the_service_are_asked_all_the_same() {
        let offer = |ready| Offer { service: "a.B".into(), ward: "w".into(), incarnation: 1, ready };
        let mut unseen = member("unseen").with_ready(false);
        unseen.offers.push(offer(false));
        let mut restarting = member("restarting");
        restarting.offers.push(offer(false));
        assert_eq!(names(&members([unseen, restarting, member("other")])), ["unseen", "restarting"]);
        assert_eq!(names(&members([member("draining").with_ready(false)])), ["draining"]);
    }

    #[test]
    fn a_member_that_stays_keeps_its_link() {
        let members = members(["a", "b"].map(member));
        let link =
            |name| members.order("/a.B/C", Instant::now()).unwrap().into_iter().find(|l| l.peer.name == name);
        let before = link("a").unwrap();
        members.replace(vec![member("a").label("k", "v"), member("c")]);
        assert!(Arc::ptr_eq(&before, &link("a").unwrap()));
        assert!(link("b").is_none());
        members.replace(vec![Member::new("a", "http://elsewhere:1")]);
        assert!(!Arc::ptr_eq(&before, &link("a").unwrap()));
    }
}
