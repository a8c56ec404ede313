//! Texts of others, within bounds: what a ward says goes into messages of limited size.

/// Cuts a text to at most this many bytes, at a character. True: there was something to cut.
pub(crate) fn cut(text: &mut String, most: usize) -> bool {
    if text.len() <= most {
        return false;
    }
    let end = (0..=most).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text.truncate(end);
    true
}
