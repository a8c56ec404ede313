//! Replies whose head came before their handler had said anything: `wardkeep-began`.
//!
//! Such a head says only that the work has begun. What the handler says at its own beginning comes as the
//! body's first frame, in the form that gRPC-Web has for trailers: the flag 0x80, a length, and
//! `name: value` lines. Pure.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// "1" in a head that was sent as soon as the work began.
pub(crate) const BEGAN: HeaderName = HeaderName::from_static("wardkeep-began");
/// "1" on copies that are to be told apart so.
pub(crate) const TIED: HeaderName = HeaderName::from_static("wardkeep-tied");
/// Largest frame of metadata.
const LIMIT: usize = 16 << 10;
const FLAG: u8 = 0x80;

/// Reads the first frame of a body.
#[derive(Debug, Default)]
pub(crate) struct Late {
    seen: BytesMut,
}

impl Late {
    /// Takes the next bytes of the body. Once the frame is whole: what it says, and the bytes behind it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn feed(&mut self, chunk: Bytes) -> Result<Option<(HeaderMap, Bytes)>, &'static str> {
        self.seen.extend_from_slice(&chunk);
        if self.seen.first().is_some_and(|flag| *flag != FLAG) {
            return Err("a head before its time without the frame of metadata that belongs to it");
        }
        let Some([_, length @ ..]) = self.seen.first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > LIMIT {
            return Err("late metadata of more than 16 KiB");
        }
        if self.seen.len() < 5 + length {
            return Ok(None);
        }
        let mut frame = std::mem::take(&mut self.seen).freeze();
        let mut lines = frame.split_to(5 + length);
        lines.advance(5);
        Ok(Some((parse(&lines)?, frame)))
    }

    /// Whether the body may end here: before the frame, or never inside it.
    pub(crate) fn is_untouched(&self) -> bool {
        self.seen.is_empty()
    }
}

fn parse(lines: &[u8]) -> Result<HeaderMap, &'static str> {
    const BAD: &str = "late metadata that are none";
    let mut map = HeaderMap::new();
    let mut rest = lines;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|two| two == b"\r\n").ok_or(BAD)?;
        let (line, after) = (&rest[..end], &rest[end + 2..]);
        rest = after;
        let colon = line.iter().position(|byte| *byte == b':').ok_or(BAD)?;
        let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| BAD)?;
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| BAD)?;
        map.append(name, value);
    }
    Ok(map)
}

/// Adds to a head what came later. What the head is made of stays as it was.
pub(crate) fn merge(head: &mut HeaderMap, late: HeaderMap) {
    // With a status in it a head would be all there is.
    let status = HeaderName::from_static("grpc-status");
    let fixed =
        [header::CONTENT_TYPE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, status];
    let mut names: Vec<HeaderName> = late.keys().filter(|name| !fixed.contains(name)).cloned().collect();
    names.dedup();
    for name in names {
        head.remove(&name);
        late.get_all(&name).iter().for_each(|value| _ = head.append(name.clone(), value.clone()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(lines: &[u8]) -> Vec<u8> {
        let mut frame = vec![FLAG];
        frame.extend(u32::try_from(lines.len()).unwrap().to_be_bytes());
        frame.extend(lines);
        frame
    }

    #[test]
    fn metadata_come_out_however_the_bytes_are_cut() {
        let mut bytes = frame(b"a: 1\r\nb-bin:AAA\r\na:  2 \r\n");
        bytes.extend(b"the rest");
        for size in [1, 2, 5, 7, 100] {
            let mut late = Late::default();
            let mut found = None;
            for chunk in bytes.chunks(size) {
                let chunk = Bytes::copy_from_slice(chunk);
                match &mut found {
                    None => found = late.feed(chunk).unwrap().map(|(map, rest)| (map, rest.to_vec())),
                    Some((_, rest)) => rest.extend(chunk),
                }
            }
            let (map, rest) = found.unwrap();
            assert_eq!(map.get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
            assert_eq!((map["b-bin"].as_bytes(), rest.as_slice()), (&b"AAA"[..], &b"the rest"[..]));
        }
    }

    #[test]
    fn a_frame_of_nothing_is_no_metadata() {
        let (map, rest) = Late::default().feed(Bytes::from(frame(b""))).unwrap().unwrap();
        assert!(map.is_empty() && rest.is_empty());
    }

    #[test]
    fn garbage_is_told_apart_and_has_a_bound() {
        let fault = |bytes: Vec<u8>| Late::default().feed(Bytes::from(bytes)).unwrap_err();
        assert!(fault(vec![0, 0, 0, 0, 1, 7]).contains("without the frame"));
        assert!(fault(vec![FLAG, 0, 1, 0, 0, 0]).contains("16 KiB"));
        for lines in [&b"a: 1"[..], b"no colon\r\n", b"b\xffd: 1\r\n", b"a: \x01\r\n", b": 1\r\n"] {
            assert!(fault(frame(lines)).contains("none"), "{lines:?}");
        }
    }

    #[test]
    fn what_a_head_is_made_of_stays() {
        let map = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
        };
        let mut head = map(&[("content-type", "application/grpc"), ("x", "old")]);
        merge(&mut head, map(&[("content-type", "text/html"), ("x", "new"), ("y", "1")]));
        assert_eq!(head, map(&[("content-type", "application/grpc"), ("x", "new"), ("y", "1")]));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_are_kept_beyond_the_bound(bytes in prop::collection::vec(any::<u8>(), 0..200), size in 1usize..40) {
            let mut late = Late::default();
            for chunk in bytes.chunks(size) {
                match late.feed(Bytes::copy_from_slice(chunk)) {
                    Ok(None) => prop_assert!(late.seen.len() <= LIMIT + 5 + size),
                    _ => return Ok(()),
                }
            }
        }
    }
}
