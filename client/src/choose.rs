//! Whom a call asks, in which order. Pure: what is known comes in, with a number that turns.
//!
//! Of two members taken at random the better one is asked first (least expected time, were it the only
//! one with work): almost as good as the best of all, and no herd runs to one place. The copies go to
//! members that are as unlike as the rules want.

use std::sync::Arc;

/// Which members the copies of a call go to: those that are unlike each other in some labels, and alike in
/// others.
///
/// `machine` and `zone` are a member's own fields; anything else is looked up in its
/// [labels](crate::Member::labels).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diversity {
    pub(crate) hard: Vec<Arc<str>>,
    pub(crate) preferred: Vec<Arc<str>>,
    pub(crate) same: Vec<Arc<str>>,
}

impl Default for Diversity {
    /// Preferably on different machines, then in different zones; of the same `version`.
    fn default() -> Self {
        Self::any().preferred("machine").preferred("zone").same("version")
    }
}

impl Diversity {
    /// No rule: any members will do.
    pub fn any() -> Self {
        Self { hard: Vec::new(), preferred: Vec::new(), same: Vec::new() }
    }

    /// No two attempts of a call go to members with the same value of this label, not even when others
    /// have failed. A member without the label is not known to be unlike any other.
    #[must_use]
    pub fn hard(mut self, label: &str) -> Self {
        self.hard.push(label.into());
        self
    }

    /// Copies go to members with different values of this label while there are any.
    #[must_use]
    pub fn preferred(mut self, label: &str) -> Self {
        self.preferred.push(label.into());
        self
    }

    /// Copies go only to members with the same value of this label; where it is not known, they are
    /// taken to be alike. Others are still asked when all of those have failed.
    #[must_use]
    pub fn same(mut self, label: &str) -> Self {
        self.same.push(label.into());
        self
    }
}

/// A member that is so many times better is asked out of turn.
const NOTABLY: f64 = 1.1;

/// How willingly a member is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Has served its probation, or was not asked for long: to be tried by this call.
    Probe,
    Good,
    /// Suspected to be dead or stuck.
    Suspected,
    /// On probation.
    Shunned,
}

/// The values of the labels that the rules name, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) hard: Vec<Option<Arc<str>>>,
    pub(crate) preferred: Vec<Option<Arc<str>>>,
    pub(crate) same: Vec<Option<Arc<str>>>,
}

/// A member that may be asked.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) labels: &'a Labels,
    pub(crate) class: Class,
    /// Expected time to an answer, all told: the less, the better.
    pub(crate) cost: f64,
}

/// The members to ask, by their index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) order: Vec<usize>,
    /// So many of them, from the first, have an equal chance. The others only replace what failed.
    pub(crate) equals: usize,
}

pub(crate) fn choose(candidates: &[Candidate<'_>], turn: u64) -> Choice {
    let mut choice = Choice::default();
    let mut pool: Vec<usize> = (0..candidates.len()).collect();
    pool.rotate_left(usize::try_from(turn).unwrap_or(0) % candidates.len().max(1));
    for equal in [true, false] {
        while let Some(next) = next(candidates, &choice.order, &pool, equal, turn) {
            pool.retain(|i| *i != next);
            choice.order.push(next);
        }
        if equal {
            choice.equals = choice.order.len();
        }
    }
    choice
}

/// The next to ask. `equal`: only among those that are like the first where they should be.
fn next(all: &[Candidate<'_>], asked: &[usize], pool: &[usize], equal: bool, turn: u64) -> Option<usize> {
    let allowed = |i: &&usize| {
        let labels = all[**i].labels;
        let unlike = asked.iter().all(|a| unlike(&labels.hard, &all[*a].labels.hard));
        let alike = asked.first().is_none_or(|first| alike(&labels.same, &all[*first].labels.same));
        unlike && (alike || !equal)
    };
    // The class first, then how much is new, most wanted label first.
    let rank = |i: &usize| {
        let labels = all[*i].labels;
        let old: Vec<bool> = (labels.preferred.iter().enumerate())
            .map(|(n, value)| asked.iter().any(|a| value.is_some() && all[*a].labels.preferred[n] == *value))
            .collect();
        (all[*i].class, old)
    };
    // Those of the lowest rank so far, in the pool's order.
    let mut best: Vec<usize> = Vec::with_capacity(pool.len());
    let mut lowest = None;
    for i in pool.iter().filter(allowed) {
        let rank = Some(rank(i));
        if lowest.is_none() || rank < lowest {
            lowest = rank;
            best.clear();
        } else if rank > lowest {
            continue;
        }
        best.push(*i);
    }
    // The one whose turn it is, and another at random.
    let first = *best.first()?;
    let others = u64::try_from(best.len()).ok()?.checked_sub(1).filter(|n| *n > 0);
    let second = others.map_or(first, |n| best[1 + usize::try_from(mix(turn) % n).unwrap_or(0)]);
    // What is hardly better is no reason to leave the turn.
    Some(if all[second].cost * NOTABLY < all[first].cost { second } else { first })
}

fn unlike(one: &[Option<Arc<str>>], other: &[Option<Arc<str>>]) -> bool {
    one.iter().zip(other).all(|pair| matches!(pair, (Some(one), Some(other)) if one != other))
}

fn alike(one: &[Option<Arc<str>>], other: &[Option<Arc<str>>]) -> bool {
    one.iter().zip(other).all(|pair| !matches!(pair, (Some(one), Some(other)) if one != other))
}

/// Makes consecutive numbers look random (SplitMix64's finish).
pub(crate) fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(text: &str) -> Option<Arc<str>> {
        (!text.is_empty()).then(|| text.into())
    }

    fn labels(hard: &str, preferred: &str, same: &str) -> Labels {
        Labels { hard: vec![value(hard)], preferred: vec![value(preferred)], same: vec![value(same)] }
    }

    fn costing(labels: &Labels, class: Class, cost: f64) -> Candidate<'_> {
        Candidate { labels, class, cost }
    }

    #[test]
    fn equal_members_take_turns() {
        let none = Labels::default();
        let three = [(); 3].map(|()| costing(&none, Class::Good, 1.0));
        let firsts: Vec<usize> = (0..6).map(|turn| choose(&three, turn).order[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn of_two_the_better_is_asked_and_the_worst_of_many_never_first() {
        let none = Labels::default();
        let costs = [3.0, 1.0, 9.0, 2.0];
        let members = costs.map(|cost| costing(&none, Class::Good, cost));
        let firsts: Vec<usize> = (0..1_000).map(|turn| choose(&members, turn).order[0]).collect();
        let share = |i| firsts.iter().filter(|first| **first == i).count();
        assert_eq!(share(2), 0);
        assert!(share(1) > share(3) && share(3) > share(0) && share(0) > 0, "{:?}", [0, 1, 2, 3].map(share));
    }

    #[test]
    fn a_probe_goes_first_and_the_shunned_last() {
        let none = Labels::default();
        let classes = [Class::Shunned, Class::Suspected, Class::Good, Class::Probe];
        let members = classes.map(|class| costing(&none, class, 1.0));
        for turn in 0..20 {
            assert_eq!(choose(&members, turn), Choice { order: vec![3, 2, 1, 0], equals: 4 });
        }
    }

    #[test]
    fn copies_go_to_other_machines_while_there_are_any() {
        let [a, b] =
            ["a", "b"].map(|machine| Labels { preferred: vec![value(machine)], ..Default::default() });
        let members = [&a, &a, &b].map(|labels| costing(labels, Class::Good, 1.0));
        for turn in 0..20 {
            let order = choose(&members, turn).order;
            assert_eq!(order.len(), 3);
            assert_ne!(members[order[0]].labels, members[order[1]].labels, "{order:?}");
        }
    }

    #[test]
    fn copies_go_to_the_same_version_and_others_only_replace() {
        let [old, new, silent] = ["1", "2", ""].map(|v| labels("", "", v));
        let [old, new, silent] = [old, new, silent].map(|labels| Labels { hard: Vec::new(), ..labels });
        let members = [&old, &new, &old, &silent].map(|labels| costing(labels, Class::Good, 1.0));
        for turn in 0..20 {
            let Choice { order, equals } = choose(&members, turn);
            assert_eq!(order.len(), 4);
            if order[0] != 3 {
                let unlike = |i: &usize| !alike(&members[*i].labels.same, &members[order[0]].labels.same);
                assert!(!order[..equals].iter().any(unlike) && order[equals..].iter().all(unlike));
            }
        }
    }

    fn any_labels() -> impl Strategy<Value = Labels> {
        ("[abc]?", "[ab]?", "[12]?").prop_map(|(hard, preferred, same)| labels(&hard, &preferred, &same))
    }

    proptest! {
        #[test]
        fn the_hard_rule_is_never_broken_and_nobody_is_asked_twice(
            all in prop::collection::vec((any_labels(), 0usize..4, 0.0f64..10.0), 0..8),
            turn in any::<u64>(),
        ) {
            let classes = [Class::Probe, Class::Good, Class::Suspected, Class::Shunned];
            let candidates: Vec<_> = all.iter().map(|(l, c, cost)| costing(l, classes[*c], *cost)).collect();
            let Choice { order, equals } = choose(&candidates, turn);
            prop_assert_eq!(order.is_empty(), candidates.is_empty());
            prop_assert!(equals <= order.len());
            for (n, i) in order.iter().enumerate() {
                for j in &order[..n] {
                    prop_assert_ne!(i, j);
                    prop_assert!(unlike(&candidates[*i].labels.hard, &candidates[*j].labels.hard));
                }
                if n < equals {
                    prop_assert!(alike(&candidates[*i].labels.same, &candidates[order[0]].labels.same));
                }
            }
        }
    }
}
