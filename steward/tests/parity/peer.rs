//! A BEAM that plays stories on real OTP supervisors: see interop/erlang/wardkeep_peer.erl.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../interop/erlang/wardkeep_peer.erl");

/// `erl`, or what `WARDKEEP_ERL` names; the reason why not, if it does not run.
pub fn find() -> Result<String, String> {
    let erl = env::var("WARDKEEP_ERL").unwrap_or_else(|_| "erl".into());
    let ran = Command::new(&erl).args(["-noshell", "-eval", "halt(0)."]).stdin(Stdio::null()).output();
    match ran {
        Ok(ran) if ran.status.success() => Ok(erl),
        Ok(ran) => Err(format!("{erl}: {}", ran.status)),
        Err(e) => Err(format!("{erl}: {e}")),
    }
}

/// Has all stories (Erlang terms) played, and returns the answers in the same order: a word for the
/// start and for each op.
pub fn play(erl: &str, stories: &[String]) -> Vec<Vec<String>> {
    assert!(Path::new(PEER).is_file(), "{PEER} is missing");
    let main = "[File] = init:get_plain_arguments(), \
                {ok, M, B} = compile:file(File, [binary, report]), \
                {module, M} = code:load_binary(M, File, B), M:main().";
    let mut child = Command::new(erl)
        .args(["-noshell", "-eval", main, "-extra", PEER])
        .env("ERL_CRASH_DUMP_BYTES", "0")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut answers = vec![Vec::new(); stories.len()];
    thread::scope(|scope| {
        scope.spawn(move || {
            for (number, story) in stories.iter().enumerate() {
                // The peer may end early: its answers tell.
                if writeln!(stdin, "{{{number},{story}}}.").is_err() {
                    break;
                }
            }
        });
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            let mut words = line.split(' ').map(str::to_owned);
            let number = words.next().and_then(|number| number.parse::<usize>().ok());
            let Some(number) = number.filter(|number| *number < stories.len()) else {
                panic!("the peer says: {line}")
            };
            answers[number] = words.collect();
        }
    });
    let status = child.wait().unwrap();
    assert!(status.success(), "the peer ended with {status}");
    answers
}
