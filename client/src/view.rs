//! The members known now, and the order in which a call asks them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};

use crate::{
    channel::{Given, Link, Wiring, Word},
    choose::{Candidate, Choice, Class, Diversity, Labels, choose},
    error::CallError,
    gate,
    member::Member,
    stats::MemberStats,
    track::{Standing, Track},
};

/// Seconds an answer is taken to need while nothing is known of any member.
const USUAL: f64 = 0.01;

struct Peer {
    member: Member,
    labels: Labels,
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
    wiring: Wiring,
    diversity: Diversity,
    view: ArcSwap<View>,
    published: watch::Sender<Arc<[Member]>>,
    turn: AtomicU64,
}

/// Whom a call asks.
pub(crate) struct Order {
    pub(crate) links: Vec<Arc<Link>>,
    /// So many of them, from the first, have an equal chance.
    pub(crate) equals: usize,
    /// How busy they are, from 0 to 1.
    pub(crate) utilisation: f64,
}

impl Members {
    pub(crate) fn new(wiring: Wiring, diversity: Diversity, members: Vec<(Member, Option<Given>)>) -> Self {
        let published = watch::Sender::new(Arc::from([]));
        let this = Self { wiring, diversity, view: ArcSwap::default(), published, turn: AtomicU64::new(0) };
        this.adopt(members);
        this
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Arc<[Member]>> {
        self.published.subscribe()
    }

    /// Tells when members become suspected.
    pub(crate) fn suspicions(&self) -> watch::Receiver<u64> {
        self.wiring.suspicions.subscribe()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.view.load().peers.is_empty()
    }

    /// Only one caller at a time: the builder, then the follower of the directory.
    pub(crate) fn replace(&self, members: Vec<Member>) {
        self.adopt(members.into_iter().map(|member| (member, None)).collect());
    }

    fn adopt(&self, members: Vec<(Member, Option<Given>)>) {
        let now = Instant::now();
        let old = self.view.load_full();
        let key = |member: &Member| (member.name.clone(), member.uri.clone());
        let mut known: HashMap<(String, String), &Peer> =
            old.peers.iter().map(|peer| (key(&peer.member), peer)).collect();
        let mut published = Vec::with_capacity(members.len());
        let mut peers = Vec::with_capacity(members.len());
        for (member, given) in members {
            let before = known.remove(&key(&member));
            let link = match before {
                Some(peer) => peer.link.clone(),
                None => Arc::new(Link::new(&member, given, &self.wiring)),
            };
            if before.is_some_and(|peer| has_returned(&peer.member, &member)) {
                link.returned(now);
            }
            let wardless = !member.offers.is_empty() && member.offers.iter().all(|offer| !offer.ready);
            link.hear(match member.suspected {
                _ if !member.ready || wardless => Word::Ill,
                true => Word::Suspected,
                false => Word::Well,
            });
            published.push(member.clone());
            peers.push(Peer { labels: self.labels(&member), member, link });
        }
        // What still runs on those that are gone had better run elsewhere.
        known.into_values().for_each(|peer| peer.link.hear(Word::Ill));
        self.view.store(Arc::new(View { peers }));
        self.published.send_replace(published.into());
    }

    fn labels(&self, member: &Member) -> Labels {
        let of = |names: &[Arc<str>]| names.iter().map(|name| member.value_of(name).map(Arc::from)).collect();
        let Diversity { hard, preferred, same } = &self.diversity;
        Labels { hard: of(hard), preferred: of(preferred), same: of(same) }
    }

    /// The members that may be asked for a method, in the order to ask them. `repeatable`: others may be
    /// asked if the first turns out to be ill.
    ///
    /// Those that are said not to be ready are asked only if none is. What is said of them is old then, or the
    /// one who says it has lost sight of them all: they know better themselves, and refuse at once if it is so.
    pub(crate) fn order(&self, method: &str, repeatable: bool, now: Instant) -> Result<Order, CallError> {
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
        let mut peers: Vec<&Peer> = view.peers.iter().filter(ready).collect();
        if peers.is_empty() {
            peers.extend(view.peers.iter().filter(offers));
        }
        let at = self.wiring.since_birth(now);
        let usual = usual(&peers);
        let (candidates, busy): (Vec<_>, Vec<_>) =
            peers.iter().map(|peer| candidate(peer, repeatable, usual, at)).unzip();
        let Choice { order, equals } = choose(&candidates, self.turn.fetch_add(1, Relaxed));
        let links = order.into_iter().map(|i| peers[i].link.clone()).collect();
        Ok(Order { links, equals, utilisation: gate::utilisation(busy) })
    }

    /// What is known of each member.
    pub(crate) fn stats(&self, now: Instant) -> BTreeMap<String, MemberStats> {
        let at = self.wiring.since_birth(now);
        let view = self.view.load();
        let stats = view.peers.iter().map(|peer| {
            let health = peer.link.health();
            let mean = health.track.known_mean().filter(|mean| mean.is_finite());
            let stats = MemberStats {
                in_flight: peer.link.in_flight(),
                mean: mean.map(|mean| Duration::from_secs_f64(mean.clamp(0.0, 1e6))),
                utilisation: health.track.utilisation(at),
                on_probation: health.track.standing(at) != Standing::Good,
            };
            (peer.member.name.clone(), stats)
        });
        stats.collect()
    }
}

/// Seconds that an answer takes at a member in the middle.
fn usual(peers: &[&Peer]) -> f64 {
    middle(peers.iter().filter_map(|p| p.link.health().track.known_mean()))
}

/// Of the means that are known; [`USUAL`] if none is.
pub(crate) fn middle(means: impl Iterator<Item = f64>) -> f64 {
    let mut means: Vec<f64> = means.collect();
    means.sort_by(f64::total_cmp);
    means.get(means.len().saturating_sub(1) / 2).copied().unwrap_or(USUAL)
}

fn candidate<'a>(peer: &'a Peer, repeatable: bool, usual: f64, at: Duration) -> (Candidate<'a>, Option<f64>) {
    let link = &peer.link;
    let track = &link.health().track;
    let (class, cost) = rate(track, link.is_suspected(), link.in_flight(), repeatable, usual, at);
    (Candidate { labels: &peer.labels, class, cost }, track.utilisation(at))
}

/// How willingly a member is asked, and what an answer costs: the less, the better.
pub(crate) fn rate(
    track: &Track,
    suspected: bool,
    in_flight: usize,
    repeatable: bool,
    usual: f64,
    at: Duration,
) -> (Class, f64) {
    let class = match track.standing(at) {
        Standing::Probation => Class::Shunned,
        _ if suspected => Class::Suspected,
        Standing::Good if repeatable && track.is_stale(at) => Class::Probe,
        Standing::Good => Class::Good,
        // Only a call that can move on tries one that may be ill.
        Standing::ProbeDue if repeatable || track.was_unreachable() => Class::Probe,
        Standing::ProbeDue => Class::Suspected,
    };
    let free = 1.0 - track.utilisation(at).unwrap_or_default().clamp(0.0, 0.9);
    // `as` is exact for any number of calls there can be.
    let queue = in_flight as f64 + 1.0;
    // What is long past says nothing of its speed.
    let mean = if track.is_stale(at) { usual } else { track.mean(at, usual) };
    (class, mean * queue * track.slow_start(at) / free)
}

/// Whether a member is back, or not what it was: nothing is held against the new one.
fn has_returned(before: &Member, now: &Member) -> bool {
    let incarnations = |member: &Member| -> Vec<u64> {
        member.offers.iter().filter(|o| o.ready).map(|o| o.incarnation).collect()
    };
    now.ready && (!before.ready || incarnations(before) != incarnations(now))
}

#[cfg(test)]
mod tests {
    use tokio_util::{sync::CancellationToken, task::TaskTracker};

    use super::*;
    use crate::{
        channel::{CONNECT_TIMEOUT, Dialer},
        losers::Losers,
        member::Offer,
        restraint::Restraint,
        track::Sample,
    };

    fn members(list: impl IntoIterator<Item = Member>) -> Members {
        let dialer = Dialer::new(None, CONNECT_TIMEOUT, Arc::default());
        let losers = Losers::new(TaskTracker::new(), CancellationToken::new(), Duration::ZERO);
        let wiring = Wiring::new(dialer, Arc::default(), Restraint::default(), losers);
        Members::new(wiring, Diversity::default(), list.into_iter().map(|m| (m, None)).collect())
    }

    fn order(members: &Members, method: &str) -> Vec<Arc<Link>> {
        members.order(method, true, Instant::now()).unwrap().links
    }

    fn member(name: &str) -> Member {
        Member::new(name, format!("http://{name}:1"))
    }

    fn names(members: &Members) -> Vec<String> {
        order(members, "/a.B/C").iter().map(|l| l.peer.name.clone()).collect()
    }

    #[test]
    fn equal_members_take_turns() {
        let members = members(["a", "b", "c"].map(member));
        let firsts = [(); 4].map(|()| names(&members)[0].clone());
        assert_eq!(firsts, ["a", "b", "c", "a"]);
    }

    #[test]
    fn the_busy_and_the_unreachable_come_last() {
        let members = members(["a", "b", "c"].map(member));
        let links = order(&members, "/a.B/C");
        links[0].record(Instant::now(), Sample::Unreachable);
        let _busy = links[1].enter();
        let last = links[0].peer.name.clone();
        for _ in 0..6 {
            let names = names(&members);
            assert_eq!((names[0].as_str(), &names[2]), (links[2].peer.name.as_str(), &last));
        }
    }

    #[test]
    fn members_that_are_not_ready_or_do_not_offer_the_service_are_not_asked() {
        let offer = |ready| Offer {
            service: "a.B".into(),
            ward: "w".into(),
            incarnation: 1,
            ready,
            suspected: false,
        };
        let mut offers = member("offers");
        offers.offers.push(offer(true));
        let mut restarting = member("restarting");
        restarting.offers.push(offer(false));
        let all = members([offers, restarting, member("other"), member("draining").with_ready(false)]);
        assert_eq!(names(&all), ["offers"]);
        assert_eq!(order(&all, "/grpc.health.v1.Health/Check").len(), 3);
    }

    #[test]
    fn if_none_is_ready_those_that_offer_the_service_are_asked_all_the_same() {
        let offer = |ready| Offer {
            service: "a.B".into(),
            ward: "w".into(),
            incarnation: 1,
            ready,
            suspected: false,
        };
        let mut unseen = member("unseen").with_ready(false);
        unseen.offers.push(offer(false));
        let mut restarting = member("restarting");
        restarting.offers.push(offer(false));
        let mut asked = names(&members([unseen, restarting, member("other")]));
        asked.sort();
        assert_eq!(asked, ["restarting", "unseen"]);
        assert_eq!(names(&members([member("draining").with_ready(false)])), ["draining"]);
    }

    #[test]
    fn a_member_that_stays_keeps_its_link() {
        let members = members(["a", "b"].map(member));
        let link = |name| order(&members, "/a.B/C").into_iter().find(|l| l.peer.name == name);
        let before = link("a").unwrap();
        members.replace(vec![member("a").label("k", "v"), member("c")]);
        assert!(Arc::ptr_eq(&before, &link("a").unwrap()));
        assert!(link("b").is_none());
        members.replace(vec![Member::new("a", "http://elsewhere:1")]);
        assert!(!Arc::ptr_eq(&before, &link("a").unwrap()));
    }

    #[test]
    fn what_is_said_of_a_member_is_told_to_whoever_waits_for_it() {
        let members = members(["a", "b"].map(member));
        let mut suspicions = members.suspicions();
        let link = order(&members, "/a.B/C").into_iter().find(|l| l.peer.name == "a").unwrap();
        let mut suspected = member("a");
        suspected.suspected = true;
        members.replace(vec![suspected, member("b")]);
        assert!(suspicions.has_changed().unwrap() && link.is_suspect(Instant::now()));
        assert_eq!(names(&members), ["b", "a"]);
        suspicions.mark_unchanged();
        members.replace(vec![member("a"), member("b")]);
        assert!(!suspicions.has_changed().unwrap() && !link.is_suspect(Instant::now()));
        members.replace(vec![member("b")]);
        assert!(suspicions.has_changed().unwrap() && link.is_suspect(Instant::now()));
    }

    #[test]
    fn nothing_is_held_against_a_member_that_is_another_incarnation() {
        let offering = |incarnation| {
            let mut member = member("a");
            member.offers.push(Offer {
                service: "a.B".into(),
                ward: "w".into(),
                incarnation,
                ready: true,
                suspected: false,
            });
            member
        };
        let members = members([offering(1)]);
        let link = order(&members, "/a.B/C").remove(0);
        link.record(Instant::now(), Sample::Unreachable);
        members.replace(vec![offering(1)]);
        assert!(link.is_suspect(Instant::now()));
        members.replace(vec![offering(2)]);
        assert!(!link.is_suspect(Instant::now()));
    }
}
