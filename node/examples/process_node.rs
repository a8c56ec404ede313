//! A node whose only ward is a program: the shell script in `$SCRIPT`. Prints the node's address. Attends
//! `$SUPERVISOR` if that is set; where `$SUBREAPER` is set it inherits orphans, as PID 1 does.
#![allow(clippy::print_stdout)]

use wardkeep_node::{Node, Program, Ward, shutdown_signal};

#[tokio::main]
async fn main() -> Result<(), wardkeep_proto::Error> {
    let set = |name| std::env::var(name).ok();
    if set("SUBREAPER").is_some() && nix::sys::prctl::set_child_subreaper(true).is_err() {
        println!("not a subreaper");
    }
    let program = Program::new("sh").args(["-c".to_owned(), set("SCRIPT").unwrap_or_default()]);
    let mut node = Node::builder("process").ward(Ward::process("program", program));
    if let Some(supervisor) = set("SUPERVISOR") {
        node = node.supervisor(supervisor);
    }
    let node = node.bind("127.0.0.1:0").await?;
    println!("{}", node.local_addr());
    node.run_until(shutdown_signal()).await
}
