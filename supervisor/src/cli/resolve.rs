//! Names: whole, or a prefix that only one has. What fits several, or none, is an error that shows
//! what was meant to be chosen from.

use wardkeep_proto::v1::{Fleet, Group, Node, Ward};

use super::{
    connect::name_of,
    exit::{Exit, Failure},
};

/// How alike a suggestion must be.
const ALIKE: f64 = 0.7;
/// So many candidates are shown.
const SHOWN: usize = 8;

/// The node meant.
///
/// # Errors
/// Not found (4), or several fit (2).
pub(crate) fn node<'a>(fleet: &'a Fleet, wanted: &str) -> Result<&'a Node, Failure> {
    pick("node", wanted, fleet.nodes.iter().map(|n| (name_of(n).to_owned(), n)))
}

/// The group meant.
///
/// # Errors
/// Not found (4), or several fit (2).
pub(crate) fn group<'a>(fleet: &'a Fleet, wanted: &str) -> Result<&'a Group, Failure> {
    let name = |g: &Group| g.spec.as_ref().map(|s| s.name.clone()).unwrap_or_default();
    pick("group", wanted, fleet.groups.iter().map(|g| (name(g), g)))
}

/// The ward meant: `node/ward`, or `ward` where only one node has it.
///
/// # Errors
/// Not found (4), or several fit (2).
pub(crate) fn ward<'a>(fleet: &'a Fleet, wanted: &str) -> Result<&'a Ward, Failure> {
    if let Some((node_part, ward_part)) = wanted.split_once('/') {
        let node = name_of(node(fleet, node_part)?);
        let of_node = fleet.wards.iter().filter(|w| w.node == node);
        return pick(&format!("ward on {node}"), ward_part, of_node.map(|w| (short_name(w).to_owned(), w)));
    }
    let named = |fits: &dyn Fn(&str) -> bool| -> Vec<_> {
        fleet.wards.iter().filter(|w| fits(short_name(w))).collect()
    };
    let mut found = named(&|name| name == wanted);
    if found.is_empty() && !wanted.is_empty() {
        found = named(&|name| name.starts_with(wanted));
    }
    match found.as_slice() {
        [only] => Ok(only),
        [] => {
            let names = fleet.wards.iter().map(|w| short_name(w).to_owned());
            Err(not_found("ward", wanted, names.collect()))
        }
        several => Err(ambiguous("ward", wanted, several.iter().map(|w| path(w)).collect())),
    }
}

/// A ward's name on its node.
pub(crate) fn short_name(ward: &Ward) -> &str {
    ward.spec.as_ref().map(|s| s.name.as_str()).unwrap_or_default()
}

/// `node/ward`.
pub(crate) fn path(ward: &Ward) -> String {
    format!("{}/{}", ward.node, short_name(ward))
}

fn pick<T>(noun: &str, wanted: &str, named: impl Iterator<Item = (String, T)>) -> Result<T, Failure> {
    let mut all: Vec<(String, T)> = named.collect();
    if let Some(exact) = all.iter().position(|(name, _)| name == wanted) {
        return Ok(all.swap_remove(exact).1);
    }
    let fitting = |(name, _): &(String, T)| !wanted.is_empty() && name.starts_with(wanted);
    let mut fits = all.iter().enumerate().filter(|(_, entry)| fitting(entry)).map(|(i, _)| i);
    match (fits.next(), fits.next()) {
        (Some(only), None) => Ok(all.swap_remove(only).1),
        (Some(_), Some(_)) => {
            let names = all.into_iter().filter(fitting).map(|(name, _)| name);
            Err(ambiguous(noun, wanted, names.collect()))
        }
        (None, _) => Err(not_found(noun, wanted, all.into_iter().map(|(name, _)| name).collect())),
    }
}

fn ambiguous(noun: &str, wanted: &str, candidates: Vec<String>) -> Failure {
    Failure::usage(format!("{wanted:?} fits more than one {noun}: {}", list(candidates)))
}

/// "no node "x"", with the nearest name, or else all names.
pub(crate) fn not_found(noun: &str, wanted: &str, mut names: Vec<String>) -> Failure {
    names.sort();
    names.dedup();
    let alike = |name: &str| strsim::jaro_winkler(name, wanted);
    let nearest = names.iter().map(|n| (alike(n), n)).max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = match nearest {
        Some((score, name)) if score >= ALIKE => format!("; did you mean {name:?}?"),
        Some(_) => format!("; there are: {}", list(names)),
        None => "; there are none".to_owned(),
    };
    Failure::new(Exit::NotFound, format!("no {noun} {wanted:?}{hint}"))
}

/// The first few, and how many more.
pub(crate) fn list(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    let shown = names.join(", ");
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wardkeep_proto::v1::{NodeInfo, WardSpec};

    fn fleet() -> Fleet {
        let node = |name: &str| Node {
            info: Some(NodeInfo { name: name.into(), ..Default::default() }),
            ..Default::default()
        };
        let ward = |node: &str, name: &str| Ward {
            node: node.into(),
            spec: Some(WardSpec { name: name.into(), ..Default::default() }),
            ..Default::default()
        };
        Fleet {
            nodes: vec![node("scan"), node("scan2"), node("trigram")],
            wards: vec![ward("scan", "search"), ward("trigram", "search"), ward("trigram", "indexer")],
            ..Default::default()
        }
    }

    #[test]
    fn a_whole_name_beats_longer_ones_and_a_unique_prefix_will_do() {
        let fleet = fleet();
        assert_eq!(name_of(node(&fleet, "scan").unwrap()), "scan");
        assert_eq!(name_of(node(&fleet, "t").unwrap()), "trigram");
        assert_eq!(path(ward(&fleet, "t/se").unwrap()), "trigram/search");
        assert_eq!(path(ward(&fleet, "ind").unwrap()), "trigram/indexer");
    }

    #[test]
    fn what_fits_several_lists_them_and_what_fits_none_suggests_the_nearest() {
        let fleet = fleet();
        let several = ward(&fleet, "search").unwrap_err();
        assert_eq!(several.exit, Exit::Usage);
        assert_eq!(several.message, r#""search" fits more than one ward: scan/search, trigram/search"#);
        let none = node(&fleet, "trigam").unwrap_err();
        assert_eq!(
            (none.exit, none.message.as_str()),
            (Exit::NotFound, r#"no node "trigam"; did you mean "trigram"?"#)
        );
        assert_eq!(node(&fleet, "").unwrap_err().exit, Exit::NotFound);
        assert!(node(&fleet, "zzz").unwrap_err().message.ends_with("there are: scan, scan2, trigram"));
    }
}
