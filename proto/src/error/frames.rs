//! Where in the binary an error was made: addresses that mean the same in every process of one build.
//!
//! Only instruction pointers are taken, which costs microseconds. Their names are a matter for whoever
//! reads the error: resolving them takes tens of milliseconds the first time (see `symbols`).
#![allow(unsafe_code)]

use std::{ops::Range, sync::OnceLock};

/// Frames that are kept, innermost first: of a deeper stack, what is nearest to the failure.
pub(super) const MOST_FRAMES: usize = 32;

/// Addresses of a stack within this process' main module, innermost first, relative to where its file
/// says it is loaded: what `addr2line` and debuggers take for the file of the same build.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames(Vec<u64>);

impl Frames {
    /// The stack of whoever calls. Empty where the platform does not tell (only Linux does so far).
    pub fn capture() -> Self {
        let Some(module) = module() else { return Self::default() };
        let mut frames = Vec::with_capacity(MOST_FRAMES);
        let mut visit = |frame: &backtrace::Frame| {
            // The return address, less one: an address within the call itself.
            let at = (frame.ip() as u64).saturating_sub(1);
            if module.code.contains(&at) {
                frames.push(at - module.bias);
            }
            frames.len() < MOST_FRAMES
        };
        // SAFETY: what has to be synchronized is Windows' dbghelp and the names' cache; the unwinder
        // that walks the stack here keeps no state between calls.
        unsafe { backtrace::trace_unsynchronized(&mut visit) };
        Self(frames)
    }

    /// The addresses.
    pub fn into_vec(self) -> Vec<u64> {
        self.0
    }
}

/// Which build this process runs: the GNU build ID of its main module, `t1-` and the first 40 hex digits
/// of SHA-256 over its code if it was linked without one, nothing where it cannot be known.
pub fn build_id() -> &'static str {
    module().map(|module| module.build_id.as_str()).unwrap_or_default()
}

/// The file that code of this process came from.
struct Module {
    /// Where its code is in memory.
    code: Range<u64>,
    /// What separates addresses in memory from addresses in the file's own terms.
    bias: u64,
    build_id: String,
}

fn module() -> Option<&'static Module> {
    static MODULE: OnceLock<Option<Module>> = OnceLock::new();
    MODULE.get_or_init(find_module).as_ref()
}

#[cfg(not(target_os = "linux"))]
fn find_module() -> Option<Module> {
    None
}

/// Reads a few pages of the file, once.
#[cfg(target_os = "linux")]
fn find_module() -> Option<Module> {
    use object::{Object as _, ObjectSegment as _};

    const PAGE: u64 = 4_096;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let here = find_module as *const () as u64;
    let mapping = maps.lines().filter_map(Mapping::parse).find(|mapping| mapping.memory.contains(&here))?;
    // Through the link, not by name: the file may have been replaced since.
    let file = object::ReadCache::new(std::fs::File::open("/proc/self/exe").ok()?);
    let elf = object::File::parse(&file).ok()?;
    let segment = elf.segments().find(|segment| {
        let (offset, len) = segment.file_range();
        (offset & !(PAGE - 1)..offset + len).contains(&mapping.offset) && segment.permissions().executable()
    })?;
    let (offset, _) = segment.file_range();
    let begins = mapping.memory.start - mapping.offset + offset;
    let build_id = match elf.build_id() {
        Ok(Some(id)) => super::hash::hex(id),
        _ => code_id(segment.data().ok()?),
    };
    Some(Module { code: mapping.memory, bias: begins.wrapping_sub(segment.address()), build_id })
}

/// What names a build that was linked without a build ID: its code, which stripping leaves as it is.
pub(super) fn code_id(code: &[u8]) -> String {
    use sha2::Digest as _;
    format!("t1-{}", super::hash::hex(&sha2::Sha256::digest(code)[..20]))
}

/// A line of `/proc/self/maps`.
#[cfg(target_os = "linux")]
struct Mapping {
    memory: Range<u64>,
    offset: u64,
}

#[cfg(target_os = "linux")]
impl Mapping {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self { memory: number(begin)?..number(end)?, offset: number(fields.nth(1)?)? })
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[inline(never)]
    fn here() -> Frames {
        Frames::capture()
    }

    #[test]
    fn the_same_place_has_the_same_addresses_and_another_has_others() {
        let stacks: Vec<_> = (0..2).map(|_| here()).collect();
        assert_eq!(stacks[0], stacks[1]);
        assert_ne!(stacks[0], here());
        assert!(!stacks[0].0.is_empty() && stacks[0].0.len() <= MOST_FRAMES);
    }

    #[test]
    fn addresses_are_those_of_the_file() {
        use object::{Object as _, ObjectSection as _};
        let file = std::fs::read("/proc/self/exe").unwrap();
        let elf = object::File::parse(&*file).unwrap();
        let text = elf.section_by_name(".text").unwrap();
        let text = text.address()..text.address() + text.size();
        assert!(here().0.iter().all(|frame| text.contains(frame)));
        assert!(!build_id().is_empty());
    }
}
