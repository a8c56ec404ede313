//! A BEAM that plays stories on real OTP supervisors: see interop/erlang/wardkeep_peer.erl.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

/// A story takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../interop/erlang/wardkeep_peer.erl");

/// `erl`, or what `WARDKEEP_ERL` names; the reason why not, if it does not run.
pub fn find() -> Result<String, String> {
    let erl = env::var("WARDKEEP_ERL").unwrap_or_else(|_| "erl".into());
    let release = "io:put_chars(erlang:system_info(otp_release)), halt(0).";
    let ran = Command::new(&erl).args(["-noshell", "-eval", release]).stdin(Stdio::null()).output();
    let ran = ran.map_err(|e| format!("{erl}: {e}"))?;
    match String::from_utf8_lossy(&ran.stdout).parse::<u32>() {
        // Significant children came with it.
        Ok(24..) => Ok(erl),
        Ok(old) => Err(format!("{erl} is OTP {old}; 24 or later is needed")),
        Err(_) => Err(format!("{erl} says no release of OTP ({})", ran.status)),
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
    let (line_out, lines) = mpsc::channel();
    let answers = thread::scope(|scope| {
        scope.spawn(move || {
            for (number, story) in stories.iter().enumerate() {
                // The peer may end early: its answers tell.
                if writeln!(stdin, "{{{number},{story}}}.").is_err() {
                    break;
                }
            }
        });
        scope.spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let sent = line.map(|line| line_out.send(line));
                if !matches!(sent, Ok(Ok(()))) {
                    break;
                }
            }
        });
        let answers = collect(&lines, stories.len());
        if answers.is_err() {
            child.kill().unwrap();
        }
        answers
    });
    let status = child.wait().unwrap();
    match answers {
        Ok(answers) if status.success() => answers,
        Ok(_) => panic!("the peer ended with {status}"),
        Err(why) => panic!("{why} ({status})"),
    }
}

fn collect(lines: &Receiver<String>, stories: usize) -> Result<Vec<Vec<String>>, String> {
    let mut answers = vec![Vec::new(); stories];
    loop {
        let line = match lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return Ok(answers),
            Err(RecvTimeoutError::Timeout) => return Err(format!("the peer says nothing for {PATIENCE:?}")),
        };
        let mut words = line.split(' ').map(str::to_owned);
        let number = words.next().and_then(|number| number.parse::<usize>().ok());
        let Some(answer) = number.and_then(|number| answers.get_mut(number)) else {
            return Err(format!("the peer says: {line}"));
        };
        *answer = words.collect();
    }
}
