//! Whatever a peer says becomes an error that keeps the rules. `fuzz/` runs the same for longer.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

mod check;
mod generate;

use arbitrary::Unstructured;
use proptest::prelude::*;

fn config() -> ProptestConfig {
    ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() }
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    // Drawn as a whole: byte by byte it takes longer than what is tested.
    (0..600_usize).prop_perturb(|length, mut random| {
        let mut bytes = vec![0; length];
        random.fill_bytes(&mut bytes);
        bytes
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_status_becomes_an_error_that_survives_the_next_hop(bytes in bytes()) {
        if let Ok(said) = generate::said(&mut Unstructured::new(&bytes)) {
            check::status(&said);
        }
    }

    #[test]
    fn any_headers_can_be_read_and_written(bytes in bytes()) {
        if let Ok(pairs) = generate::headers(&mut Unstructured::new(&bytes)) {
            check::headers(&pairs);
        }
    }
}
