//! The three data paths give one answer, keep to the limit and stop when told.
#![allow(clippy::unwrap_used)]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use proptest::prelude::*;
use wardkeep_examples::search::{Answer, Corpus, DataPath, Engine, Hit, Query, QueryError, SearchError};

/// The engines over one corpus, with the folder that SQLite needs.
struct Engines {
    all: Vec<Box<dyn Engine>>,
    _dir: tempfile::TempDir,
}

impl Engines {
    fn over(corpus: Corpus) -> Self {
        let (corpus, dir) = (Arc::new(corpus), tempfile::tempdir().unwrap());
        let build = |path: DataPath| path.build(Arc::clone(&corpus), dir.path(), &|_| {}).unwrap();
        Self { all: DataPath::ALL.map(build).into(), _dir: dir }
    }

    /// The answer of all engines, which must be one.
    fn answer(&self, query: &str, limit: usize) -> Answer {
        let query = Query::new(query).unwrap();
        let mut answers = self
            .all
            .iter()
            .map(|engine| (engine.data_path(), engine.search(&query, limit, &|| true).unwrap()));
        let (_, first) = answers.next().unwrap();
        for (path, answer) in answers {
            assert_eq!(first, answer, "{path} on {:?}", query.as_str());
        }
        first
    }
}

/// What the answer is by definition, written as plainly as possible.
fn by_definition(corpus: &Corpus, query: &str, limit: usize) -> Answer {
    let mut hits = Vec::new();
    for file in &corpus.files {
        for (n, line) in file.text.split('\n').enumerate() {
            if let Some(at) = line.find(query) {
                let (line_number, column) = (u32::try_from(n + 1).unwrap(), u32::try_from(at + 1).unwrap());
                let text = line.strip_suffix('\r').unwrap_or(line).chars().take(200).collect();
                hits.push(Hit { path: file.path.clone(), line: line_number, column, text });
            }
        }
    }
    let complete = hits.len() <= limit;
    hits.truncate(limit);
    Answer { hits, complete }
}

/// Texts over a small alphabet, so that queries do occur, with what makes trouble in an index: quotes, NUL-like
/// noncharacters, combining marks, wide characters, all ends of lines.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[ab]{1,4}",
        1 => Just("\n".to_owned()),
        1 => Just("\r\n".to_owned()),
        1 => prop::sample::select(vec!["é", "e\u{301}", "日本", "🦀", "\"", "\"\"", "*", "A", "\t", "\u{ffff}", "\u{fffd}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn corpus() -> impl Strategy<Value = Corpus> {
    prop::collection::vec(text(), 0..12).prop_map(|texts| {
        Corpus::from_texts(texts.into_iter().enumerate().map(|(n, text)| (format!("{n:02}"), text)))
    })
}

/// A query cut from the corpus itself, or made of the same pieces.
fn query(corpus: &Corpus) -> impl Strategy<Value = String> + use<> {
    let all: Vec<String> =
        corpus.files.iter().flat_map(|file| file.text.lines().map(str::to_owned)).collect();
    let cut =
        (any::<prop::sample::Index>(), 0..20_usize, 1..12_usize).prop_map(move |(line, from, length)| {
            if all.is_empty() {
                return String::new();
            }
            line.get(&all).chars().skip(from).take(length).collect()
        });
    prop_oneof![3 => cut, 1 => text()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn every_engine_answers_by_the_definition(
        (corpus, queries) in corpus().prop_flat_map(|corpus| {
            let queries = prop::collection::vec((query(&corpus), 0..6_usize), 1..8);
            (Just(corpus), queries)
        })
    ) {
        let engines = Engines::over(corpus.clone());
        for (query, limit) in queries {
            if Query::new(query.as_str()).is_ok() {
                prop_assert_eq!(engines.answer(&query, limit), by_definition(&corpus, &query, limit));
            }
        }
    }
}

fn many_files(files: usize) -> Corpus {
    let text = format!("first needle\n{}last needle\n", "filler in between\n".repeat(500));
    Corpus::from_texts((0..files).map(|n| (format!("{n:04}"), text.clone())))
}

#[test]
fn an_answer_is_complete_when_the_limit_is_just_enough() {
    let engines = Engines::over(many_files(10));
    let ends = |limit| {
        let answer = engines.answer("needle", limit);
        (answer.hits.len(), answer.complete)
    };
    assert_eq!(
        [ends(0), ends(1), ends(19), ends(20), ends(usize::MAX)],
        [(0, false), (1, false), (19, false), (20, true), (20, true)]
    );
    assert!(engines.answer("needless", 0).complete);
}

#[test]
fn a_query_with_fewer_characters_than_a_token_is_answered() {
    let engines = Engines::over(Corpus::from_texts([("a", "日本\n"), ("b", "日\n🦀"), ("c", "日本")]));
    assert_eq!(engines.answer("日本", 9).hits.len(), 2);
    assert_eq!(engines.answer("日", 9).hits.len(), 3);
    assert_eq!(engines.answer("🦀", 9).hits.len(), 1);
}

#[test]
fn an_engine_over_nothing_finds_nothing() {
    let engines = Engines::over(Corpus::from_texts([("empty", "")]));
    assert_eq!(engines.answer("abc", 1), Answer { hits: vec![], complete: true });
}

#[test]
fn a_search_that_is_told_to_stop_stops_within_a_question_per_thread() {
    let engines = Engines::over(many_files(400));
    let query = Query::new("needle").unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    for engine in &engines.all {
        let asked = AtomicUsize::new(0);
        let answer = engine.search(&query, usize::MAX, &|| asked.fetch_add(1, Ordering::SeqCst) < 10);
        assert!(matches!(answer, Err(SearchError::Stopped(_))), "{}", engine.data_path());
        let extra = asked.into_inner() - 10;
        assert!(extra <= threads, "{} asked {extra} times more", engine.data_path());
    }
}

#[test]
fn an_engine_answers_many_threads_at_once_and_after_a_stop() {
    let engines = Engines::over(many_files(50));
    std::thread::scope(|scope| {
        for n in 0..12 {
            let engines = &engines;
            scope.spawn(move || {
                let query = Query::new("last needle").unwrap();
                for engine in &engines.all {
                    assert!(engine.search(&query, 9, &|| false).is_err());
                }
                assert_eq!(engines.answer("last needle", 50 + n).hits.len(), 50);
            });
        }
    });
}

#[test]
fn a_query_that_breaks_a_rule_is_refused_with_the_rule() {
    assert_eq!(Query::new("ab"), Err(QueryError::TooShort(2)));
    assert_eq!(Query::new("x".repeat(201)), Err(QueryError::TooLong(201)));
    for text in ["a\nb", "a\rb", "a\0b"] {
        assert_eq!(Query::new(text), Err(QueryError::NotOneLine));
    }
    assert_eq!(Query::new("ab").unwrap_err().to_string(), "a query needs at least 3 bytes, this one has 2");
}

#[test]
fn an_index_that_cannot_be_written_is_one_clear_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let corpus = Arc::new(Corpus::from_texts([("a", "text")]));
    let error = DataPath::Sqlite.build(corpus, &missing, &|_| {}).err().unwrap().to_string();
    assert!(!error.contains('\n') && error.contains("missing"), "{error}");
}

#[test]
fn a_data_path_is_known_by_its_name() {
    for path in DataPath::ALL {
        assert_eq!(path.to_string().parse(), Ok(path));
    }
    assert_eq!(
        "grep".parse::<DataPath>().unwrap_err().to_string(),
        "no data path is called \"grep\": use scan, trigram or sqlite"
    );
}
