//! Whether what a node says of itself can be taken in: everything kept for long is bounded here,
//! and what is wrong is said in one line.

use std::collections::HashSet;

use uuid::Uuid;
use wardkeep_node::wire::{MOST_WARDS, check_name as name};
use wardkeep_proto::v1;

/// The protocol spoken here.
const PROTOCOL: u32 = 1;
/// Bytes of any other text.
const TEXT: usize = 1_024;
/// Wards of one node, and groups it may declare.
pub(super) const WARDS: usize = MOST_WARDS;
/// Labels of one node, and services of one ward.
const ENTRIES: usize = 128;

/// The node's boot ID, if its Hello is in order.
pub(super) fn check(hello: &v1::Hello) -> Result<Uuid, String> {
    if hello.protocol != PROTOCOL {
        return Err(format!("it speaks version {}, this supervisor speaks {PROTOCOL}", hello.protocol));
    }
    let info = hello.node.as_ref().ok_or("its Hello does not say which node it is")?;
    name("node", &info.name)?;
    let boot = Uuid::parse_str(&info.boot_id)
        .ok()
        .filter(|boot| boot.get_version_num() == 7)
        .ok_or("its boot ID is not a UUIDv7")?;
    self::info(info)?;
    few("wards", hello.wards.len(), WARDS)?;
    let mut seen = HashSet::new();
    for ward in &hello.wards {
        let spec = ward.spec.as_ref().ok_or("one of its wards has no spec")?;
        self::ward(spec)?;
        if !seen.insert(spec.name.as_str()) {
            return Err(format!("two of its wards are named {}", spec.name));
        }
    }
    let in_order = hello.slots.is_sorted_by(|a, b| a < b);
    if !hello.slots.is_empty() && (hello.slots.len() != hello.wards.len() || !in_order) {
        return Err("the slots of its wards are not as many as they are, or do not grow".to_owned());
    }
    groups(&info.name, &hello.groups)?;
    Ok(boot)
}

/// Groups that a node declares.
pub(super) fn groups(node: &str, groups: &[v1::GroupSpec]) -> Result<(), String> {
    few("groups", groups.len(), WARDS)?;
    for group in groups {
        if !group.parent.is_empty() {
            name("group", &group.parent)?;
        }
        // The wards that name no group are in one named after their node.
        let own = group.name.strip_suffix('/').is_some_and(|own| own == node);
        if !own {
            name("group", &group.name)?;
        }
    }
    Ok(())
}

fn info(info: &v1::NodeInfo) -> Result<(), String> {
    for (what, text) in [
        ("machine", &info.machine),
        ("zone", &info.zone),
        ("version", &info.version),
        ("address", &info.uri),
        ("configuration file", &info.config_file),
    ] {
        plain(what, text)?;
    }
    few("labels", info.labels.len(), ENTRIES)?;
    info.labels.iter().try_for_each(|(key, value)| {
        plain("label", key)?;
        plain("label", value)
    })
}

/// A ward that a node hosts.
pub(super) fn ward(spec: &v1::WardSpec) -> Result<(), String> {
    name("ward", &spec.name)?;
    if !spec.group.is_empty() {
        name("group", &spec.group)?;
    }
    few("services of one ward", spec.services.len(), ENTRIES)?;
    spec.services.iter().try_for_each(|service| plain("service", service))
}

fn plain(what: &str, text: &str) -> Result<(), String> {
    if text.len() > TEXT {
        return Err(format!("its {what} has {} bytes, {TEXT} are allowed", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("its {what} {text:?} has control characters in it"));
    }
    Ok(())
}

/// Whether there is room.
pub(super) fn few(what: &str, count: usize, most: usize) -> Result<(), String> {
    if count > most { Err(format!("it has {count} {what}, {most} are allowed")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> v1::Hello {
        let boot_id = Uuid::now_v7().to_string();
        let ward = |name: &str| v1::Ward {
            spec: Some(v1::WardSpec { name: name.into(), ..Default::default() }),
            ..Default::default()
        };
        v1::Hello {
            protocol: 1,
            node: Some(v1::NodeInfo { name: "n".into(), boot_id, ..Default::default() }),
            wards: vec![ward("a"), ward("b")],
            groups: vec![v1::GroupSpec { name: "n/".into(), ..Default::default() }],
            ..Default::default()
        }
    }

    fn wrong(spoil: impl FnOnce(&mut v1::Hello)) -> String {
        let mut hello = hello();
        spoil(&mut hello);
        check(&hello).unwrap_err()
    }

    #[test]
    fn a_hello_in_order_is_taken_in() {
        let hello = hello();
        assert_eq!(check(&hello).unwrap().to_string(), hello.node.unwrap().boot_id);
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        assert_eq!(wrong(|h| h.protocol = 2), "it speaks version 2, this supervisor speaks 1");
        assert_eq!(wrong(|h| h.node = None), "its Hello does not say which node it is");
        let boot = |id: &str| wrong(|h| h.node.as_mut().unwrap().boot_id = id.into());
        assert_eq!(boot("x"), "its boot ID is not a UUIDv7");
        assert_eq!(boot("f47ac10b-58cc-4372-a567-0e02b2c3d479"), "its boot ID is not a UUIDv7");
        let named = |name: String| wrong(|h| h.node.as_mut().unwrap().name = name);
        assert_eq!(named(String::new()), "a node has an empty name");
        assert_eq!(named("x".repeat(129)), "the name of a node has 129 bytes, 128 are allowed");
        assert_eq!(named("a\u{1b}[2J".into()).lines().count(), 1);
        assert_eq!(named("a/b".into()), "the name \"a/b\" of a node has a slash or control characters in it");
        assert_eq!(wrong(|h| h.wards[1] = h.wards[0].clone()), "two of its wards are named a");
        assert_eq!(wrong(|h| h.wards[1].spec = None), "one of its wards has no spec");
        assert_eq!(
            wrong(|h| h.groups[0].parent = "a\u{1b}b".into()),
            "the name \"a\\u{1b}b\" of a group has a slash or control characters in it"
        );
        assert_eq!(
            wrong(|h| h.groups[0].name = "other/".into()),
            "the name \"other/\" of a group has a slash or control characters in it"
        );
        let many = wrong(|h| h.wards = vec![h.wards[0].clone(); 1_025]);
        assert_eq!(many, "it has 1025 wards, 1024 are allowed");
        let slots = "the slots of its wards are not as many as they are, or do not grow";
        assert_eq!(wrong(|h| h.slots = vec![3]), slots);
        assert_eq!(wrong(|h| h.slots = vec![3, 3]), slots);
        let labels = wrong(|h| h.node.as_mut().unwrap().labels = [("k".into(), "v\n".into())].into());
        assert_eq!(labels, "its label \"v\\n\" has control characters in it");
    }
}
