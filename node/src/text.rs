//! Texts of others, within bounds: what a ward says goes into messages of limited size.

/// Cuts a text to at most this many bytes, at a character. True: there was something to cut.
pub(crate) fn cut(text: &mut String, most: usize) -> bool {
    if text.len() <= most {
        return false;
    }
    let end = wardkeep_proto::prefix(text, most).len();
    text.truncate(end);
    true
}
