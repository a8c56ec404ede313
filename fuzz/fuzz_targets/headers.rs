//! The same as in `proto/tests/hostile`, for as long as one likes.
#![no_main]

#[path = "../../proto/tests/hostile/check.rs"]
#[allow(dead_code)]
mod check;
#[path = "../../proto/tests/hostile/generate.rs"]
#[allow(dead_code)]
mod generate;

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(said) = generate::headers(&mut Unstructured::new(bytes)) {
        check::headers(&said);
    }
});
