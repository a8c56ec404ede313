//! How much replication the members can bear. Pure.
//!
//! Two copies of everything shorten the tail only below about a quarter to a third of utilisation (without
//! them); beyond, the queues they make cost more than they save.

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

/// Copies that go out at once end here, themselves included.
const CROWDED: f64 = 0.75;
/// From here on nothing is sent more than once.
const SATURATED: f64 = 0.9;
/// To go back, it must be clearly below.
const NO_LONGER: f64 = 0.8;
/// For copies that go out one after the other: from here on they keep a distance.
const BUSY: f64 = 0.33;
const IDLE: f64 = 0.25;

impl Level {
    /// The level at this utilisation, coming from another, for calls that are sent to so many `at_once`.
    ///
    /// Those multiply the load they are measured by. So they go on until the members are crowded, the copies
    /// included; and begin again when all of the copies would have room.
    pub(crate) fn at(self, utilisation: f64, at_once: usize) -> Self {
        // `as` is exact for any number of copies there can be.
        let (busy, idle) = if at_once > 1 { (CROWDED, CROWDED / at_once as f64) } else { (BUSY, IDLE) };
        match self {
            Self::Full if utilisation < busy => Self::Full,
            // How busy they are without the copies is not known yet.
            Self::Full if at_once > 1 => Self::Hedge,
            Self::Full | Self::Hedge if utilisation >= SATURATED => Self::Single,
            Self::Single if utilisation >= NO_LONGER => Self::Single,
            _ if utilisation < idle => Self::Full,
            _ => Self::Hedge,
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
        assert_eq!(Level::Full.at(0.1, 1), Level::Full);
        assert_eq!(Level::Full.at(0.5, 1), Level::Hedge);
        assert_eq!(Level::Hedge.at(0.9, 3), Level::Single);
        assert_eq!(Level::Full.at(0.95, 1), Level::Single);
    }

    #[test]
    fn the_way_back_needs_a_clear_drop() {
        assert_eq!(Level::Hedge.at(0.3, 1), Level::Hedge);
        assert_eq!(Level::Full.at(0.3, 1), Level::Full);
        assert_eq!(Level::Hedge.at(0.2, 1), Level::Full);
        assert_eq!(Level::Single.at(0.85, 3), Level::Single);
        assert_eq!(Level::Single.at(0.6, 3), Level::Hedge);
        assert_eq!(Level::Single.at(0.1, 3), Level::Full);
    }

    #[test]
    fn what_copies_add_does_not_end_them_until_the_members_are_saturated() {
        // A fifth, and three copies of it.
        assert_eq!(Level::Full.at(0.6, 3), Level::Full);
        assert_eq!(Level::Full.at(0.8, 3), Level::Hedge);
        // Without the copies it is known whether they have room.
        assert_eq!(Level::Hedge.at(0.2, 3), Level::Full);
        assert_eq!(Level::Hedge.at(0.3, 3), Level::Hedge);
        assert_eq!(Level::Hedge.at(0.3, 2), Level::Full);
        assert_eq!(Level::Full.at(0.95, 3).at(0.95, 3), Level::Single);
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
