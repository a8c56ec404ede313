//! Parallel scan: no index, nothing to build, and the time of an answer depends on how soon the first hits come.

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use super::{
    Answer, BuildError, Corpus, DataPath, Engine, Hit, KeepGoing, Query, SearchError, Stopped,
    matcher::Matcher,
};

/// Files are handed to threads in blocks of about this many bytes.
const BLOCK_BYTES: usize = 128 * 1024;
/// Blocks that are scanned by the caller alone before other threads are woken: waking them takes as long.
const LEAD_BLOCKS: usize = 8;

/// Scans the whole corpus in memory, in waves that double: a query whose hits come soon reads little, and wakes nobody.
pub struct Scan {
    corpus: Arc<Corpus>,
    blocks: Vec<Range<usize>>,
    pool: rayon::ThreadPool,
}

impl Scan {
    /// Prepares to scan this corpus with one thread per core.
    ///
    /// # Errors
    /// [`BuildError::Threads`] when the threads do not start.
    pub fn new(corpus: Arc<Corpus>) -> Result<Self, BuildError> {
        let pool = super::pool("scan")?;
        let blocks = blocks(&corpus);
        Ok(Self { corpus, blocks, pool })
    }

    fn block(
        &self,
        block: &Range<usize>,
        matcher: &Matcher<'_>,
        room: usize,
        keep_going: KeepGoing<'_>,
    ) -> Result<Vec<Hit>, Stopped> {
        let mut hits = Vec::new();
        for file in &self.corpus.files[block.clone()] {
            matcher.collect(&file.path, &file.text, room, &mut hits, keep_going)?;
            if hits.len() >= room {
                break;
            }
        }
        Ok(hits)
    }
}

impl Engine for Scan {
    fn data_path(&self) -> DataPath {
        DataPath::Scan
    }

    fn search(&self, query: &Query, limit: usize, keep_going: KeepGoing<'_>) -> Result<Answer, SearchError> {
        let matcher = Matcher::new(query);
        let upto = limit.saturating_add(1);
        let mut hits = Vec::new();
        let (lead, mut rest) = self.blocks.split_at(LEAD_BLOCKS.min(self.blocks.len()));
        for block in lead {
            if hits.len() >= upto {
                break;
            }
            hits.extend(self.block(block, &matcher, upto - hits.len(), keep_going)?);
        }
        let mut wave = LEAD_BLOCKS;
        while !rest.is_empty() && hits.len() < upto {
            let (now, later) = rest.split_at(wave.min(rest.len()));
            let room = upto - hits.len();
            let work = |block| self.block(block, &matcher, room, keep_going);
            let found: Vec<Vec<Hit>> =
                self.pool.install(|| now.par_iter().map(work).collect::<Result<_, _>>())?;
            hits.extend(found.into_iter().flatten().take(room));
            (rest, wave) = (later, wave * 2);
        }
        Ok(Answer::cut(hits, limit))
    }
}

fn blocks(corpus: &Corpus) -> Vec<Range<usize>> {
    let mut blocks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, file) in corpus.files.iter().enumerate() {
        bytes += file.text.len();
        if bytes >= BLOCK_BYTES {
            blocks.push(start..index + 1);
            (start, bytes) = (index + 1, 0);
        }
    }
    if start < corpus.files.len() {
        blocks.push(start..corpus.files.len());
    }
    blocks
}
