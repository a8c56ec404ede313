//! Queries that people could ask of a corpus, drawn from it with a seed: the same corpus, seed and number give the same
//! queries.

use std::{collections::HashMap, fmt};

use memchr::memmem;

use super::{Corpus, File, Query};
use crate::random::SplitMix64;

/// A word counts as rare when at most this many files have it.
const RARE_FILES: u32 = 2;
/// The words found in most files, of which the common ones are drawn.
const COMMON_WORDS: usize = 100;
/// Lengths of words that are worth asking for, in bytes.
const WORD_BYTES: std::ops::RangeInclusive<usize> = 4..=40;
/// Draws that may fail one after the other before a kind is given up for this corpus.
const TRIES: usize = 1000;

/// What a query is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QueryKind {
    /// A word of one or two files.
    Rare,
    /// A word of very many files.
    Common,
    /// Two to four words of one line, as they are written there.
    Phrase,
    /// A misspelt word or phrase, or words in an order in which they never stand.
    NoHit,
}

impl QueryKind {
    /// All of them, in the order in which they are drawn.
    pub const ALL: [Self; 4] = [Self::Rare, Self::Common, Self::Phrase, Self::NoHit];

    /// The name, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rare => "rare word",
            Self::Common => "common word",
            Self::Phrase => "phrase",
            Self::NoHit => "no hit",
        }
    }
}

impl fmt::Display for QueryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A query with the reason it was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// What it is like.
    pub kind: QueryKind,
    /// What to ask.
    pub query: Query,
}

/// Draws `number` queries, the kinds in turn. A corpus too small to have a kind gives the other kinds instead; one with
/// no words at all gives none.
pub fn draw(corpus: &Corpus, seed: u64, number: usize) -> Vec<Drawn> {
    let mut source = Source::new(corpus, seed);
    let mut drawn = Vec::with_capacity(number);
    let mut kinds = QueryKind::ALL.to_vec();
    let mut turn = 0;
    while drawn.len() < number && !kinds.is_empty() {
        let at = turn % kinds.len();
        match (0..TRIES).find_map(|_| source.draw(kinds[at])) {
            Some(query) => {
                drawn.push(Drawn { kind: kinds[at], query });
                turn += 1;
            }
            None => _ = kinds.remove(at),
        }
    }
    drawn
}

struct Source<'a> {
    corpus: &'a Corpus,
    rare: Vec<&'a str>,
    common: Vec<&'a str>,
    random: SplitMix64,
}

impl<'a> Source<'a> {
    fn new(corpus: &'a Corpus, seed: u64) -> Self {
        let mut by_files: Vec<(&str, u32)> = files_per_word(corpus).into_iter().collect();
        by_files.sort_unstable_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        let common = by_files.iter().take(COMMON_WORDS).map(|(word, _)| *word).collect();
        let rare = by_files.iter().filter(|(_, files)| *files <= RARE_FILES).map(|(word, _)| *word).collect();
        Self { corpus, rare, common, random: SplitMix64(seed) }
    }

    fn draw(&mut self, kind: QueryKind) -> Option<Query> {
        let text = match kind {
            QueryKind::Rare => self.random.pick(&self.rare)?.to_string(),
            QueryKind::Common => self.random.pick(&self.common)?.to_string(),
            QueryKind::Phrase => self.phrase()?.0,
            QueryKind::NoHit => return self.no_hit(),
        };
        Query::new(text).ok()
    }

    /// Two to four words of a line as written, and the same words one by one.
    fn phrase(&mut self) -> Option<(String, Vec<&'a str>)> {
        let File { text, .. } = self.random.pick(&self.corpus.files)?;
        let near = self.random.below(text.len())?;
        let start = memchr::memrchr(b'\n', &text.as_bytes()[..near]).map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next()?;
        let words: Vec<&str> = words(line).collect();
        let wanted = 2 + self.random.below(3)?;
        let first = self.random.below((words.len() + 1).checked_sub(wanted)?)?;
        let words = &words[first..first + wanted];
        let offset = |word: &str| word.as_ptr().addr() - line.as_ptr().addr();
        let last = words.last()?;
        let phrase = &line[offset(words.first()?)..offset(last) + last.len()];
        Some((phrase.to_owned(), words.to_vec()))
    }

    fn no_hit(&mut self) -> Option<Query> {
        let text = match self.random.below(3)? {
            0 => {
                let word = self.random.pick(&self.rare).or(self.random.pick(&self.common))?.to_string();
                self.misspell(word)?
            }
            1 => {
                let (phrase, _) = self.phrase()?;
                self.misspell(phrase)?
            }
            _ => {
                let (_, mut words) = self.phrase()?;
                words.reverse();
                words.join(" ")
            }
        };
        let query = Query::new(text).ok()?;
        let finder = memmem::Finder::new(query.as_str());
        let occurs = self.corpus.files.iter().any(|file| finder.find(file.text.as_bytes()).is_some());
        (!occurs).then_some(query)
    }

    /// Writes another letter in the place of one.
    fn misspell(&mut self, mut text: String) -> Option<String> {
        let letters: Vec<usize> = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| byte.is_ascii_lowercase())
            .map(|(at, _)| at)
            .collect();
        let at = *self.random.pick(&letters)?;
        let letter = u8::try_from(self.random.below(26)?).ok()? + b'a';
        text.replace_range(at..=at, char::from(letter).encode_utf8(&mut [0; 4]));
        Some(text)
    }
}

/// Runs of ASCII letters, digits and `_`.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// In how many files each word stands.
fn files_per_word(corpus: &Corpus) -> HashMap<&str, u32> {
    // With each word, the number of the last file that counted it: no set per file is needed.
    let mut counts: HashMap<&str, (u32, usize)> = HashMap::new();
    for (number, file) in corpus.files.iter().enumerate() {
        let worth =
            |word: &&str| WORD_BYTES.contains(&word.len()) && !word.starts_with(|c: char| c.is_ascii_digit());
        for word in words(&file.text).filter(worth) {
            let (files, last) = counts.entry(word).or_insert((0, usize::MAX));
            if *last != number {
                (*files, *last) = (*files + 1, number);
            }
        }
    }
    counts.into_iter().map(|(word, (files, _))| (word, files)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        Corpus::from_texts((0..40).map(|n| {
            (
                format!("f{n:02}.rs"),
                format!("fn common_name(value: u32) {{\n    let only_{n}_here = value + {n};\n}}\n"),
            )
        }))
    }

    fn files_with(corpus: &Corpus, query: &Query) -> usize {
        corpus.files.iter().filter(|file| file.text.contains(query.as_str())).count()
    }

    #[test]
    fn the_same_seed_draws_the_same_queries() {
        let corpus = corpus();
        assert_eq!(draw(&corpus, 7, 100), draw(&corpus, 7, 100));
        assert_ne!(draw(&corpus, 7, 100), draw(&corpus, 8, 100));
    }

    #[test]
    fn each_kind_keeps_its_promise_and_has_an_equal_part() {
        let corpus = corpus();
        let drawn = draw(&corpus, 1, 200);
        for kind in QueryKind::ALL {
            let of_kind: Vec<_> = drawn.iter().filter(|drawn| drawn.kind == kind).collect();
            assert_eq!(of_kind.len(), 50, "{kind}");
            for Drawn { query, .. } in of_kind {
                let files = files_with(&corpus, query);
                match kind {
                    QueryKind::NoHit => assert_eq!(files, 0, "{query}"),
                    _ => assert!(files > 0, "{query}"),
                }
            }
        }
    }

    #[test]
    fn a_corpus_without_words_has_no_queries() {
        assert_eq!(draw(&Corpus::from_texts([("a", "é é\n")]), 1, 10), []);
    }
}
