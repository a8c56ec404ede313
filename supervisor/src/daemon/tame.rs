//! Bounds for what peers write freely: such text is cut, not refused, since a long message of an
//! error is no reason to lose the node that had it.

use prost::Message as _;
use wardkeep_proto::v1;

/// Bytes of a sentence.
const SENTENCE: usize = 2_048;
/// Bytes of an ID or a `traceparent`.
const ID: usize = 128;
/// Bytes of a whole error; a larger one is reduced to what an operator needs at once.
const ERROR: usize = 8 * 1024;
/// Errors told at once.
const ERRORS: usize = 256;
/// Lines of output told at once, and bytes of one.
const LINES: usize = 1_000;
const LINE: usize = 4_096;
/// Differences between a configuration file and its process.
const CHANGES: usize = 4_096;
/// Events of a node's own history.
const HISTORY: usize = 256;

/// Cuts a sentence, marking that it was cut.
pub(super) fn sentence(text: &mut String) {
    cut(text, SENTENCE, "…");
}

/// Cuts an ID.
pub(super) fn id(text: &mut String) {
    cut(text, ID, "");
}

fn cut(text: &mut String, bytes: usize, mark: &str) {
    if text.len() > bytes {
        let whole = wardkeep_proto::prefix(text, bytes).len();
        text.truncate(whole);
        text.push_str(mark);
        // What was cut off is not kept as spare room.
        text.shrink_to_fit();
    }
}

/// What cannot be a trace context is none.
fn traceparent(text: &mut String) {
    if text.len() > ID {
        *text = String::new();
    }
}

/// Bounds an error.
pub(super) fn error(error: &mut v1::Error) {
    sentence(&mut error.what);
    sentence(&mut error.user_message);
    let labels = [&mut error.id, &mut error.domain, &mut error.kind, &mut error.group_hash];
    let places = [&mut error.machine, &mut error.node, &mut error.ward];
    let traces = [&mut error.exact_hash, &mut error.trace_id, &mut error.request_id];
    labels.into_iter().chain(places).chain(traces).for_each(id);
    if error.encoded_len() > ERROR {
        error.hops.iter_mut().for_each(|hop| hop.functions = Vec::new());
    }
    if error.encoded_len() > ERROR {
        error.hops = Vec::new();
        error.causes = Vec::new();
        error.related_ids = Vec::new();
        error.truncated = ["hops", "causes", "related_ids"].map(str::to_owned).into();
    }
}

/// Bounds errors that a node tells of; the oldest are the first to go.
pub(super) fn errors(told: &mut v1::ErrorRecords) {
    let over = told.records.len().saturating_sub(ERRORS);
    told.records.drain(..over);
    told.records.shrink_to_fit();
    told.dropped = told.dropped.saturating_add(over as u64);
    told.records.iter_mut().for_each(error);
    told.tallies.truncate(ERRORS);
    told.tallies.iter_mut().for_each(|tally| id(&mut tally.group_hash));
}

/// Bounds a page of output.
pub(super) fn output(told: &mut v1::Output) {
    told.lines.truncate(LINES);
    told.lines.iter_mut().for_each(|line| cut(&mut line.text, LINE, ""));
    told.error.iter_mut().for_each(error);
}

/// Bounds a change of a ward.
pub(super) fn change(change: &mut v1::WardChange) {
    sentence(&mut change.status);
    if let Some(exit) = &mut change.exit {
        traceparent(&mut exit.traceparent);
        exit.error.iter_mut().for_each(error);
    }
}

/// Bounds what a node says of a ward beside its spec.
pub(super) fn ward(ward: &mut v1::Ward) {
    sentence(&mut ward.status);
    id(&mut ward.last_error_id);
}

/// Bounds what a node says of its configuration.
pub(super) fn config(answer: &mut v1::ConfigAnswer) {
    answer.changes.truncate(CHANGES);
    for change in &mut answer.changes {
        let texts = [&mut change.noun, &mut change.name, &mut change.key, &mut change.note];
        texts.into_iter().chain([&mut change.before, &mut change.after]).for_each(sentence);
    }
    answer.restarts.truncate(super::hello::WARDS);
    answer.restarts.iter_mut().for_each(sentence);
    answer.error.iter_mut().for_each(error);
}

/// Bounds what a Hello brings beside what [`super::hello`] checks.
pub(super) fn hello(hello: &mut v1::Hello) {
    hello.wards.iter_mut().for_each(ward);
    let old = hello.history.len().saturating_sub(HISTORY);
    hello.history.drain(..old);
    hello.history.shrink_to_fit();
    for event in &mut hello.history {
        sentence(&mut event.text);
        for text in [&mut event.ward, &mut event.actor] {
            id(text);
        }
        traceparent(&mut event.traceparent);
        event.error.iter_mut().for_each(error);
        id(&mut event.group);
        if let Some(decision) = &mut event.decision {
            id(&mut decision.group);
            decision.groups.truncate(super::hello::WARDS);
            decision.groups.iter_mut().for_each(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_sentence_is_cut_between_characters() {
        let mut text = "ä".repeat(SENTENCE);
        sentence(&mut text);
        assert!(text.len() <= SENTENCE + '…'.len_utf8());
        assert!(text.ends_with("ä…"));
        let mut short = "short".to_owned();
        sentence(&mut short);
        assert_eq!(short, "short");
    }

    #[test]
    fn a_huge_error_keeps_its_id_and_its_message() {
        let hop = v1::Hop { method: "m".repeat(1_000), ..Default::default() };
        let mut huge = v1::Error {
            id: "0198".into(),
            what: "w".repeat(1_000_000),
            hops: vec![hop; 1_000],
            ..Default::default()
        };
        error(&mut huge);
        assert_eq!(huge.id, "0198");
        assert!(huge.what.starts_with("www"));
        assert!(huge.encoded_len() <= ERROR);
    }
}
