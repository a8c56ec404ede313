//! How much replication the members can bear. Pure.
//!
//! Two copies of everything shorten the tail only below about a quarter to a third of utilisation;
//! beyond, the queues they make cost more than they save.

/// What is still done of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// All of it.
    Full,
    /// The second copy only when the first is late.
    Hedge,
    /// One copy; another only when that one fails.
    Single,
}

/// Full below the first, single from the second on.
const UP: [f64; 2] = [0.33, 0.75];
/// To go back, it must be clearly below.
const DOWN: [f64; 2] = [0.25, 0.65];

impl Level {
    /// The level at this utilisation, coming from another.
    pub(crate) fn at(self, utilisation: f64) -> Self {
        let [to_hedge, to_single] = match self {
            Self::Full => UP,
            Self::Hedge => [DOWN[0], UP[1]],
            Self::Single => DOWN,
        };
        match utilisation {
            u if u >= to_single => Self::Single,
            u if u >= to_hedge => Self::Hedge,
            _ => Self::Full,
        }
    }
}

/// The utilisation of members of which one may be slow for reasons of its own: the lower median. Members
/// of which nothing is known are idle.
pub(crate) fn utilisation(each: impl IntoIterator<Item = Option<f64>>) -> f64 {
    let mut each: Vec<f64> = each.into_iter().map(Option::unwrap_or_default).collect();
    each.sort_by(f64::total_cmp);
    each.get(each.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_when_idle_hedged_in_between_single_when_saturated() {
        assert_eq!(Level::Full.at(0.1), Level::Full);
        assert_eq!(Level::Full.at(0.5), Level::Hedge);
        assert_eq!(Level::Hedge.at(0.8), Level::Single);
        assert_eq!(Level::Full.at(0.95), Level::Single);
    }

    #[test]
    fn the_way_back_needs_a_clear_drop() {
        assert_eq!(Level::Hedge.at(0.3), Level::Hedge);
        assert_eq!(Level::Full.at(0.3), Level::Full);
        assert_eq!(Level::Hedge.at(0.2), Level::Full);
        assert_eq!(Level::Single.at(0.7), Level::Single);
        assert_eq!(Level::Single.at(0.6), Level::Hedge);
        assert_eq!(Level::Single.at(0.1), Level::Full);
    }

    #[test]
    fn one_slow_member_among_several_is_no_saturation() {
        assert_eq!(utilisation([Some(0.9), Some(0.1)]), 0.1);
        assert_eq!(utilisation([Some(0.9), Some(0.8), Some(0.1)]), 0.8);
        assert_eq!(utilisation([Some(0.9), None, Some(0.1)]), 0.1);
        assert_eq!(utilisation([]), 0.0);
        assert_eq!(utilisation([Some(0.9)]), 0.9);
    }
}
