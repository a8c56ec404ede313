//! How solvers are compared: PAR-2, the usual score. The mean time, where a formula that was not solved counts as twice
//! the limit.

/// Seconds that a formula took; `None`: it was not solved within the limit.
pub(crate) type Time = Option<f64>;

/// Its mean, in seconds; 0 for nothing.
pub(crate) fn par2(times: &[Time], limit: f64) -> f64 {
    let sum: f64 = times.iter().map(|time| time.unwrap_or(2.0 * limit)).sum();
    if times.is_empty() { 0.0 } else { sum / times.len() as f64 }
}

/// The virtual best solver: for each formula, the time of whoever was fastest. Each row is a solver's times.
pub(crate) fn virtual_best(solvers: &[Vec<Time>]) -> Vec<Time> {
    let formulas = solvers.iter().map(Vec::len).min().unwrap_or_default();
    let fastest = |at: usize| solvers.iter().filter_map(|times| times[at]).min_by(f64::total_cmp);
    (0..formulas).map(fastest).collect()
}

/// Which solver has the best score over all formulas.
pub(crate) fn best(solvers: &[Vec<Time>], limit: f64) -> Option<usize> {
    let score = |at: &usize| par2(&solvers[*at], limit);
    (0..solvers.len()).min_by(|a, b| score(a).total_cmp(&score(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_solved_counts_as_twice_the_limit() {
        assert!((par2(&[Some(1.0), None], 10.0) - 10.5).abs() < 1e-9);
        assert!(par2(&[], 10.0).abs() < 1e-9);
    }

    #[test]
    fn the_virtual_best_takes_each_formula_from_whoever_was_fastest() {
        let solvers = [vec![Some(1.0), Some(9.0), None], vec![None, Some(2.0), None]];
        assert_eq!(virtual_best(&solvers), [Some(1.0), Some(2.0), None]);
        assert_eq!(best(&solvers, 10.0), Some(0));
        assert_eq!(best(&solvers, 1.0), Some(1));
        assert_eq!(best(&[], 1.0), None);
    }
}
