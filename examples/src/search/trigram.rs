//! Trigram index in memory: for each three bytes in a row, the files that have them.
//!
//! A file is a candidate when it has every trigram of the query; candidates are then read. The index costs about as
//! much memory again as the text.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;

use super::{
    Answer, BuildError, Corpus, DataPath, Engine, KeepGoing, OnProgress, Progress, Query, SearchError,
    Stopped, matcher::Matcher,
};

const TRIGRAMS: usize = 1 << 24;
/// Candidates looked at between two questions to the caller.
const CANDIDATES_PER_QUESTION: usize = 1024;

/// The corpus with the posting lists of its trigrams: `postings[starts[n]..starts[n + 1]]` belongs to `grams[n]`.
pub struct Trigram {
    corpus: Arc<Corpus>,
    grams: Vec<u32>,
    starts: Vec<usize>,
    postings: Vec<u32>,
}

impl Trigram {
    /// Builds the index with one thread per core.
    ///
    /// # Errors
    /// [`BuildError::Threads`] when the threads do not start.
    pub fn build(corpus: Arc<Corpus>, progress: OnProgress<'_>) -> Result<Self, BuildError> {
        let (done, total) = (AtomicU64::new(0), corpus.bytes);
        let of_files: Vec<Vec<u32>> = super::pool("trigram")?.install(|| {
            corpus
                .files
                .par_iter()
                .map_init(Seen::default, |seen, file| {
                    let grams = seen.distinct(file.text.as_bytes());
                    let bytes = file.text.len() as u64;
                    let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                    progress(Progress { stage: "indexing", done, total });
                    grams
                })
                .collect()
        });
        let (grams, starts, postings) = invert(of_files);
        Ok(Self { corpus, grams, starts, postings })
    }

    /// The files that have this trigram, ascending.
    fn files_with(&self, gram: u32) -> &[u32] {
        self.grams.binary_search(&gram).map_or(&[], |n| &self.postings[self.starts[n]..self.starts[n + 1]])
    }

    /// The posting lists of the query's trigrams, shortest first.
    fn lists(&self, query: &Query) -> Vec<&[u32]> {
        let mut grams: Vec<u32> = query.as_str().as_bytes().windows(3).map(gram).collect();
        grams.sort_unstable();
        grams.dedup();
        let mut lists: Vec<&[u32]> = grams.into_iter().map(|gram| self.files_with(gram)).collect();
        lists.sort_by_key(|list| list.len());
        lists
    }
}

impl Engine for Trigram {
    fn data_path(&self) -> DataPath {
        DataPath::Trigram
    }

    fn search(&self, query: &Query, limit: usize, keep_going: KeepGoing<'_>) -> Result<Answer, SearchError> {
        let matcher = Matcher::new(query);
        let upto = limit.saturating_add(1);
        let mut hits = Vec::new();
        let mut lists = self.lists(query);
        if let Some((rarest, others)) = lists.split_first_mut() {
            // Files are checked against the other lists one at a time, so that a limit reached early saves the rest.
            for (n, &id) in rarest.iter().enumerate() {
                if n % CANDIDATES_PER_QUESTION == 0 && !keep_going() {
                    return Err(Stopped.into());
                }
                if others.iter_mut().all(|list| advance(list, id)) {
                    let file = &self.corpus.files[id as usize];
                    matcher.collect(&file.path, &file.text, upto, &mut hits, keep_going)?;
                    if hits.len() >= upto {
                        break;
                    }
                }
            }
        }
        Ok(Answer::cut(hits, limit))
    }
}

fn gram(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |gram, &byte| gram << 8 | u32::from(byte))
}

/// Drops what is below `id` from the front of the list, in steps that double; says whether `id` is next.
fn advance(list: &mut &[u32], id: u32) -> bool {
    let mut step = 1;
    while list.get(step).is_some_and(|&at| at < id) {
        step *= 2;
    }
    // Everything up to the last step that was below `id` goes; `id`, if there, is before or at `step`.
    let window = &list[step / 2..list.len().min(step + 1)];
    *list = &list[step / 2 + window.partition_point(|&at| at < id)..];
    list.first() == Some(&id)
}

/// A set of trigrams that is emptied by going through what was put in.
struct Seen {
    bits: Vec<u64>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { bits: vec![0; TRIGRAMS / 64] }
    }
}

impl Seen {
    /// Each trigram of the text once, without those that no query can have.
    fn distinct(&mut self, text: &[u8]) -> Vec<u32> {
        let mut grams = Vec::new();
        for window in text.windows(3).filter(|window| !window.contains(&b'\n')) {
            let gram = gram(window);
            let (word, bit) = (gram as usize / 64, 1 << (gram % 64));
            if self.bits[word] & bit == 0 {
                self.bits[word] |= bit;
                grams.push(gram);
            }
        }
        for &gram in &grams {
            self.bits[gram as usize / 64] = 0;
        }
        grams.shrink_to_fit();
        grams
    }
}

/// From trigrams per file to files per trigram. Files come in order, so every list comes out sorted.
fn invert(of_files: Vec<Vec<u32>>) -> (Vec<u32>, Vec<usize>, Vec<u32>) {
    // First the number of files per trigram, then the place of the trigram in `grams`.
    let mut slots = vec![0_u32; TRIGRAMS];
    let mut grams = Vec::new();
    for &gram in of_files.iter().flatten() {
        let files = &mut slots[gram as usize];
        if *files == 0 {
            grams.push(gram);
        }
        *files += 1;
    }
    grams.sort_unstable();
    let (mut starts, mut sum) = (Vec::with_capacity(grams.len() + 1), 0);
    for (place, &gram) in (0_u32..).zip(&grams) {
        starts.push(sum);
        sum += std::mem::replace(&mut slots[gram as usize], place) as usize;
    }
    let mut ends = starts.clone();
    starts.push(sum);
    let mut postings = vec![0; sum];
    for (id, of_file) in (0_u32..).zip(of_files) {
        for gram in of_file {
            let end = &mut ends[slots[gram as usize] as usize];
            postings[*end] = id;
            *end += 1;
        }
    }
    (grams, starts, postings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_a_list_finds_what_a_search_from_the_start_finds() {
        let all: Vec<u32> = (0..200).filter(|n| n % 3 != 0).collect();
        for stride in 1..70 {
            let mut rest = all.as_slice();
            for id in (0..220).step_by(stride) {
                assert_eq!(
                    advance(&mut rest, id),
                    all.binary_search(&id).is_ok(),
                    "{id} in steps of {stride}"
                );
            }
        }
    }

    #[test]
    fn posting_lists_are_sorted_and_have_each_file_once() {
        let (grams, starts, postings) = invert(vec![vec![7, 3], vec![], vec![3]]);
        assert_eq!((grams, starts, postings), (vec![3, 7], vec![0, 2, 3], vec![0, 2, 0]));
    }
}
