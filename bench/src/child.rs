//! Measurements that want a process of their own: this program, told by the environment what to do.

use std::{env, process::Command};

const JOB: &str = "WARDKEEP_BENCH_JOB";

/// What this process is to do, if it was started for it.
pub fn job() -> Option<(String, Vec<String>)> {
    let job = env::var(JOB).ok()?;
    let mut words = job.split(' ').map(str::to_owned);
    Some((words.next()?, words.collect()))
}

/// The command that does a job.
pub fn command(job: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.env(JOB, job);
    command
}

/// Does a job and returns the figures it prints.
pub fn figures(job: &str) -> Vec<f64> {
    figures_of(command(job))
}

/// Runs a program that prints figures.
pub fn figures_of(mut command: Command) -> Vec<f64> {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Option<Vec<f64>> = text.split_whitespace().map(|word| word.parse().ok()).collect();
    match figures.filter(|figures| !figures.is_empty() && output.status.success()) {
        Some(figures) => figures,
        None => panic!("{command:?} printed {text:?} and {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Prints the figures of a job.
pub fn print(figures: &[f64]) {
    println!("{}", figures.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
}
