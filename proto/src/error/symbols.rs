//! Names for the addresses of a stack, from the debug information of a binary.
//!
//! Reading it takes tens of milliseconds and megabytes the first time: this is for threads of its own and
//! for commands, never for a runtime's threads.

use std::{collections::HashMap, path::Path};

use addr2line::{Loader, demangle_auto};
use object::{Object as _, ObjectSegment as _};

use super::logical_site;

/// Names that are remembered.
const MOST_NAMES: usize = 10_000;

/// The debug information of one file. It remembers what it was asked.
pub struct Symbols {
    build_id: String,
    loader: Loader,
    names: HashMap<u64, Option<String>>,
}

impl Symbols {
    /// Of an executable, or of a file that `objcopy --only-keep-debug` made of one.
    ///
    /// # Errors
    /// One line if the file cannot be read, or is no executable.
    pub fn of_file(path: &Path) -> Result<Self, String> {
        let build_id = file_build_id(path)?;
        let loader = Loader::new(path).map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
        Ok(Self { build_id, loader, names: HashMap::new() })
    }

    /// Of the program that runs.
    ///
    /// # Errors
    /// As [`Symbols::of_file`].
    pub fn of_this_process() -> Result<Self, String> {
        Self::of_file(Path::new("/proc/self/exe"))
    }

    /// Which build the file is: see [`super::build_id`].
    pub fn build_id(&self) -> &str {
        &self.build_id
    }

    /// The function at this address with the place within it, before it (`<`) those that were inlined there;
    /// `None` if the file does not say. Type arguments are left out: they say little and take much room.
    pub fn name(&mut self, address: u64) -> Option<String> {
        if let Some(known) = self.names.get(&address) {
            return known.clone();
        }
        let name = self.look_up(address);
        if self.names.len() >= MOST_NAMES {
            self.names.clear();
        }
        self.names.insert(address, name.clone());
        name
    }

    fn look_up(&self, address: u64) -> Option<String> {
        // The symbol has the whole path of its function, which line tables do not.
        let symbol = self.loader.find_symbol(address);
        let symbol = symbol.map(|name| readable(&demangle_auto(name.into(), None)));
        let mut functions = Vec::new();
        if let Ok(mut frames) = self.loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.and_then(|f| Some(readable(&f.demangle().ok()?)));
                let place =
                    frame.location.and_then(|at| Some((logical_site(at.file?), at.line.unwrap_or(0))));
                functions.push((name, place));
            }
        }
        match functions.last_mut() {
            Some((name, _)) => *name = symbol.or(name.take()),
            None => functions.push((symbol, None)),
        }
        let told = functions.into_iter().filter_map(|(name, place)| {
            Some(match (name, place) {
                (None, None) => return None,
                (Some(name), None) => name,
                (name, Some((file, line))) => format!("{} ({file}:{line})", name.as_deref().unwrap_or("?")),
            })
        });
        let told: Vec<_> = told.collect();
        (!told.is_empty()).then(|| told.join(" < "))
    }
}

/// `core::ptr::read<alloc::string::String>::h0123456789abcdef` -> `core::ptr::read`.
fn readable(name: &str) -> String {
    let name = match name.rsplit_once("::h") {
        Some((path, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => path,
        _ => name,
    };
    let mut short = String::with_capacity(name.len());
    let (mut depth, mut before) = (0, ' ');
    for c in name.chars() {
        match c {
            '>' if before == '-' => {}
            // `<Type as Trait>` names something; `name<Type>` and `name::<Type>` only instantiate it.
            '<' if depth > 0 || before.is_alphanumeric() || matches!(before, '_' | ':' | '}') => depth += 1,
            '>' if depth > 0 => {
                depth -= 1;
                before = c;
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            short.push(c);
        }
        before = c;
    }
    short.replace("::::", "::")
}

/// The build ID of a file: its GNU build ID, or the one made from its code.
fn file_build_id(path: &Path) -> Result<String, String> {
    let line = |e: &dyn std::fmt::Display| format!("{} cannot be read: {e}", path.display());
    let cache = object::ReadCache::new(std::fs::File::open(path).map_err(|e| line(&e))?);
    let file = object::File::parse(&cache).map_err(|e| line(&e))?;
    if let Ok(Some(id)) = file.build_id() {
        return Ok(super::hash::hex(id));
    }
    let code = file.segments().find(|segment| segment.permissions().executable());
    let code = code.and_then(|segment| segment.data().ok());
    code.map(super::frames::code_id).ok_or_else(|| line(&"it has no code"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::error::{Bug, build_id};

    #[test]
    fn the_stack_of_an_error_can_be_named() {
        let error = Bug::because("x");
        let hop = error.as_proto().hops.last().unwrap();
        let mut symbols = Symbols::of_this_process().unwrap();
        assert_eq!((symbols.build_id(), hop.build_id.as_str()), (build_id(), build_id()));
        let names: Vec<_> = hop.frames.iter().filter_map(|frame| symbols.name(*frame)).collect();
        let ours = names.iter().find(|name| name.contains("the_stack_of_an_error_can_be_named"));
        assert!(ours.is_some_and(|name| name.contains("proto/src/error/symbols.rs:")), "{names:#?}");
        assert!(!names.iter().any(|name| name.contains("::h0")));
    }

    #[test]
    fn names_are_readable() {
        for (long, short) in [
            ("core::ptr::read::h0123456789abcdef", "core::ptr::read"),
            ("poll<alloc::boxed::Box<dyn Fn(u8) -> u8>>", "poll"),
            ("<a::B<C> as d::E<()>>::f::{{closure}}", "<a::B as d::E>::f::{{closure}}"),
            ("tokio::Local<T>::scope_inner", "tokio::Local::scope_inner"),
            ("a::b::<u8>::c", "a::b::c"),
            ("", ""),
        ] {
            assert_eq!(readable(long), short, "{long}");
        }
    }

    #[test]
    fn a_file_that_is_no_program_is_refused_with_one_line() {
        let error = Symbols::of_file(Path::new("/etc/passwd")).err().unwrap();
        assert!(error.starts_with("/etc/passwd cannot be read"), "{error}");
    }
}
