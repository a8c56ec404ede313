//! The text that is searched: by default the sources of the crates that cargo fetched for this very build, or any
//! folder.
//!
//! The same folder gives the same corpus, file for file: sorted by path, text only, bounded per file and in total.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use super::{OnProgress, Progress};

/// Larger files are left out.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// How much text a corpus has at most, unless told otherwise.
pub const DEFAULT_MAX_BYTES: u64 = 48 * 1024 * 1024;

/// Files with one of these extensions are text worth searching.
const EXTENSIONS: [&str; 44] = [
    "S", "asm", "bash", "c", "cc", "cfg", "cmake", "cpp", "cs", "css", "cxx", "el", "ex", "go", "h", "hh",
    "hpp", "hs", "html", "hxx", "in", "ini", "java", "js", "json", "kt", "lua", "m", "md", "ml", "pl",
    "proto", "py", "rb", "rs", "s", "sh", "sql", "swift", "toml", "ts", "txt", "yaml", "yml",
];

/// One file of the corpus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Relative to the corpus, with `/` between its parts.
    pub path: String,
    /// The whole of it: UTF-8, no NUL.
    pub text: Box<str>,
}

/// The text that is searched, sorted by path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corpus {
    /// The folder it was read from.
    pub root: PathBuf,
    /// Sorted by path.
    pub files: Vec<File>,
    /// Text in all files, in bytes.
    pub bytes: u64,
    /// True when the limit on the total left files out.
    pub truncated: bool,
    /// Files and folders below the root that could not be read and were left out.
    pub unreadable: usize,
}

/// Why there is no corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// `--corpus` names something else, or nothing.
    #[error("the corpus {0} is not a directory")]
    NotADirectory(PathBuf),
    /// The folder itself cannot be listed.
    #[error("cannot read the corpus {path}: {source}")]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder has no text file that qualifies.
    #[error("the corpus {0} has no source files: pass another directory with --corpus DIR")]
    Empty(PathBuf),
    /// The default corpus is not on this machine.
    #[error("no crate sources fetched by cargo were found ({0}): pass a directory with --corpus DIR")]
    NoDefault(&'static str),
}

impl Corpus {
    /// Reads every text file below a folder. Symbolic links, hidden files and folders, and folders named `target` are
    /// left out; so is everything from the first file on that would make the total exceed `max_bytes`.
    ///
    /// # Errors
    /// [`CorpusError`]: not a directory, not readable, or nothing in it.
    pub fn from_dir(root: &Path, max_bytes: u64, progress: OnProgress<'_>) -> Result<Self, CorpusError> {
        if !root.is_dir() {
            return Err(CorpusError::NotADirectory(root.to_owned()));
        }
        if let Err(source) = fs::read_dir(root) {
            return Err(CorpusError::Unreadable { path: root.to_owned(), source });
        }
        Self::read(root, &[root.to_owned()], max_bytes, progress)
    }

    /// Reads the sources of the packages in this workspace's `Cargo.lock`, as cargo unpacked them in its registry.
    ///
    /// # Errors
    /// [`CorpusError::NoDefault`] when the lock file or the sources are not on this machine.
    pub fn of_this_build(max_bytes: u64, progress: OnProgress<'_>) -> Result<Self, CorpusError> {
        let packages = lock_file().map(|lock| packages(&lock)).unwrap_or_default();
        if packages.is_empty() {
            return Err(CorpusError::NoDefault("no Cargo.lock here or in a parent directory"));
        }
        let home = env::var_os("CARGO_HOME").map(PathBuf::from);
        let Some(home) = home.or_else(|| Some(env::home_dir()?.join(".cargo"))) else {
            return Err(CorpusError::NoDefault("neither CARGO_HOME nor HOME is set"));
        };
        let source = home.join("registry").join("src");
        let mut registries = folders_in(&source);
        registries.sort();
        // With several registries (mirrors, say) the one with most of the packages is the one this build used.
        let in_registry = |registry: &PathBuf| -> Vec<PathBuf> {
            packages.iter().map(|package| registry.join(package)).filter(|dir| dir.is_dir()).collect()
        };
        let best = registries.into_iter().map(|registry| (in_registry(&registry), registry));
        match best.max_by_key(|(dirs, _)| dirs.len()) {
            Some((dirs, registry)) if !dirs.is_empty() => Self::read(&registry, &dirs, max_bytes, progress),
            _ => Err(CorpusError::NoDefault("its registry has none of the packages in Cargo.lock")),
        }
    }

    /// Writes down which files this corpus is made of, for [`Corpus::from_list`].
    ///
    /// # Errors
    /// What the operating system says.
    pub fn save_list(&self, list: &Path) -> io::Result<()> {
        let mut text = format!("{}\n", self.root.display());
        for file in &self.files {
            text.push_str(&file.path);
            text.push('\n');
        }
        fs::write(list, text)
    }

    /// Reads just the files that [`Corpus::save_list`] wrote down: the same text, whatever has come to stand beside
    /// them since.
    ///
    /// # Errors
    /// [`CorpusError::Unreadable`] if the list, or a file on it, cannot be read.
    pub fn from_list(list: &Path) -> Result<Self, CorpusError> {
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| CorpusError::Unreadable { path, source }
        };
        let names = fs::read_to_string(list).map_err(unreadable(list))?;
        let mut lines = names.lines();
        let root = PathBuf::from(lines.next().unwrap_or_default());
        let mut corpus = Self { root, files: Vec::new(), bytes: 0, truncated: false, unreadable: 0 };
        for name in lines {
            let path = corpus.root.join(name);
            let text = fs::read_to_string(&path).map_err(unreadable(&path))?;
            corpus.bytes += text.len() as u64;
            corpus.files.push(File { path: name.to_owned(), text: text.into() });
        }
        Ok(corpus)
    }

    fn read(
        root: &Path,
        dirs: &[PathBuf],
        max_bytes: u64,
        progress: OnProgress<'_>,
    ) -> Result<Self, CorpusError> {
        let mut found = Found { root, files: Vec::new(), unreadable: 0 };
        dirs.iter().for_each(|dir| found.walk(dir));
        found.files.sort_unstable();
        let total = found.files.iter().map(|(_, bytes)| bytes).sum::<u64>().min(max_bytes);
        let mut corpus = Self {
            root: root.to_owned(),
            files: Vec::new(),
            bytes: 0,
            truncated: false,
            unreadable: found.unreadable,
        };
        for (path, _) in found.files {
            match fs::read(root.join(&path)) {
                Err(_) => corpus.unreadable += 1,
                Ok(bytes) => {
                    let Some(text) = text(bytes) else { continue };
                    if corpus.bytes + text.len() as u64 > max_bytes {
                        corpus.truncated = true;
                        break;
                    }
                    corpus.bytes += text.len() as u64;
                    corpus.files.push(File { path, text });
                    let done = corpus.bytes;
                    progress(Progress { stage: "reading", done, total: total.max(done) });
                }
            }
        }
        if corpus.files.is_empty() { Err(CorpusError::Empty(root.to_owned())) } else { Ok(corpus) }
    }

    /// A corpus made of texts at hand, in any order.
    pub fn from_texts<P: Into<String>, T: Into<Box<str>>>(texts: impl IntoIterator<Item = (P, T)>) -> Self {
        let mut files: Vec<File> =
            texts.into_iter().map(|(path, text)| File { path: path.into(), text: text.into() }).collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let bytes = files.iter().map(|file| file.text.len() as u64).sum();
        Self { root: PathBuf::new(), files, bytes, truncated: false, unreadable: 0 }
    }
}

/// What a walk has found: paths relative to the root, with sizes.
struct Found<'a> {
    root: &'a Path,
    files: Vec<(String, u64)>,
    unreadable: usize,
}

impl Found<'_> {
    /// Goes through a tree with a list of its own, so that no depth of folders can exhaust the stack.
    fn walk(&mut self, dir: &Path) {
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = fs::read_dir(&dir) else {
                self.unreadable += 1;
                continue;
            };
            for entry in entries.flatten() {
                let (path, name) = (entry.path(), entry.file_name());
                let Ok(kind) = entry.file_type() else { continue };
                if name.as_encoded_bytes().starts_with(b".") {
                    continue;
                }
                if kind.is_dir() && name != "target" {
                    dirs.push(path);
                } else if kind.is_file() {
                    self.file(&path, &entry);
                }
            }
        }
    }

    fn file(&mut self, path: &Path, entry: &fs::DirEntry) {
        let known =
            path.extension().and_then(|ext| ext.to_str()).is_some_and(|ext| EXTENSIONS.contains(&ext));
        let relative = path.strip_prefix(self.root).ok().and_then(Path::to_str);
        if let (true, Some(relative), Ok(meta)) = (known, relative, entry.metadata())
            && meta.len() <= MAX_FILE_BYTES
        {
            self.files.push((relative.replace('\\', "/"), meta.len()));
        }
    }
}

/// The file as text, or nothing when it is not (or has outgrown the limit since it was listed).
fn text(bytes: Vec<u8>) -> Option<Box<str>> {
    if bytes.len() as u64 > MAX_FILE_BYTES || memchr::memchr(0, &bytes).is_some() {
        return None;
    }
    String::from_utf8(bytes).ok().map(String::into_boxed_str)
}

/// The text of the nearest `Cargo.lock`: above the package cargo runs, else above the current directory.
fn lock_file() -> Option<String> {
    let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let starts = package.into_iter().chain(env::current_dir().ok());
    let mut dirs = starts.flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>());
    dirs.find_map(|dir| fs::read_to_string(dir.join("Cargo.lock")).ok())
}

/// `NAME-VERSION` of every package that comes from a registry.
fn packages(lock: &str) -> Vec<String> {
    let table: toml::Table = lock.parse().unwrap_or_default();
    let entries = table.get("package").and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
    let text = |entry: &toml::Value, key| entry.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let fetched = entries.iter().filter(|entry| entry.get("source").is_some());
    fetched
        .filter_map(|entry| Some(format!("{}-{}", text(entry, "name")?, text(entry, "version")?)))
        .collect()
}

fn folders_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, bytes: &[u8]) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn paths(corpus: &Corpus) -> Vec<&str> {
        corpus.files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn only_visible_text_of_a_bounded_size_is_read_in_the_order_of_paths() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for path in ["b/z.rs", "b.rs", "a.md", ".git/x.rs", "target/x.rs", "b/.x.rs", "b/x.bin"] {
            write(root, path, b"text");
        }
        write(root, "latin.txt", b"caf\xe9");
        write(root, "nul.txt", b"a\0b");
        write(root, "large.txt", &vec![b'x'; usize::try_from(MAX_FILE_BYTES).unwrap() + 1]);
        std::os::unix::fs::symlink(root, root.join("b/loop")).unwrap();
        std::os::unix::fs::symlink(root.join("a.md"), root.join("b/link.md")).unwrap();
        let corpus = Corpus::from_dir(root, u64::MAX, &|_| {}).unwrap();
        assert_eq!(paths(&corpus), ["a.md", "b.rs", "b/z.rs"]);
        assert_eq!((corpus.bytes, corpus.truncated, corpus.unreadable), (12, false, 0));
    }

    #[test]
    fn the_limit_keeps_the_first_files_and_says_that_it_cut() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a.rs", "b.rs", "c.rs"] {
            write(dir.path(), path, b"0123456789");
        }
        let corpus = Corpus::from_dir(dir.path(), 25, &|at| assert!(at.done <= at.total)).unwrap();
        assert_eq!((paths(&corpus), corpus.bytes, corpus.truncated), (vec!["a.rs", "b.rs"], 20, true));
    }

    #[test]
    fn what_is_wrong_with_a_corpus_is_one_line_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "file.rs", b"");
        let file = dir.path().join("file.rs");
        let error = |path: &Path| Corpus::from_dir(path, 1, &|_| {}).unwrap_err().to_string();
        assert_eq!(error(&file), format!("the corpus {} is not a directory", file.display()));
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert_eq!(
            error(&empty),
            format!(
                "the corpus {} has no source files: pass another directory with --corpus DIR",
                empty.display()
            )
        );
    }

    #[test]
    fn the_sources_of_this_build_are_found_and_are_the_same_each_time() {
        let load = || Corpus::of_this_build(1024 * 1024, &|_| {}).unwrap();
        let corpus = load();
        assert!(corpus.bytes > 0 && corpus.bytes <= 1024 * 1024);
        assert!(corpus.files.is_sorted_by(|a, b| a.path < b.path));
        assert_eq!(corpus, load());
    }

    #[test]
    fn packages_of_the_workspace_itself_are_not_fetched() {
        let lock = "version = 4\n[[package]]\nname = \"own\"\nversion = \"0.1.0\"\n\
                    [[package]]\nname = \"memchr\"\nversion = \"2.8.0\"\nsource = \"registry+x\"\n";
        assert_eq!(packages(lock), ["memchr-2.8.0"]);
    }
}
