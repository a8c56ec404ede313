//! A node whose only ward is a program: the shell script in `$SCRIPT`. Prints the node's address. Attends
//! `$SUPERVISOR` if that is set; where `$SUBREAPER` is set it inherits orphans, as PID 1 does; where `$OWN` is
//! set it has children of its own, and asks how they ended when the node has.
#![allow(clippy::print_stdout)]

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command},
};

use wardkeep_node::{Node, Program, Ward, shutdown_signal};

#[tokio::main]
async fn main() -> Result<(), wardkeep_proto::Error> {
    let set = |name| std::env::var(name).ok();
    if set("SUBREAPER").is_some() && nix::sys::prctl::set_child_subreaper(true).is_err() {
        println!("not a subreaper");
    }
    let own = if set("OWN").is_some() { children_of_its_own() } else { Vec::new() };
    let program = Program::new("sh").args(["-c".to_owned(), set("SCRIPT").unwrap_or_default()]);
    let mut node = Node::builder("process").ward(Ward::process("program", program));
    if let Some(supervisor) = set("SUPERVISOR") {
        node = node.supervisor(supervisor);
    }
    let node = node.bind("127.0.0.1:0").await?;
    println!("{}", node.local_addr());
    node.run_until(shutdown_signal()).await?;
    let ends = own.into_iter().map(|mut child| child.wait().ok().and_then(|status| status.code()));
    let ends: Vec<_> = ends.map(|code| format!("{code:?}")).collect();
    if !ends.is_empty() {
        println!("{}", ends.join(" "));
    }
    Ok(())
}

/// Two that end at once: in a group of its own, started by this thread and by another.
fn children_of_its_own() -> Vec<Child> {
    let start =
        |code: &str| Command::new("sh").args(["-c", &format!("exit {code}")]).process_group(0).spawn().ok();
    let here = start("7");
    let there = std::thread::scope(|scope| scope.spawn(|| start("8")).join().ok().flatten());
    here.into_iter().chain(there).collect()
}
