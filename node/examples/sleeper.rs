//! A node whose only ward is a program that sleeps. Prints the program's PID; to be killed.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use wardkeep_node::{Node, Program, Ward, shutdown_signal};

#[tokio::main]
async fn main() -> Result<(), wardkeep_proto::Error> {
    // The program tells its PID itself: nobody else knows it.
    let program = Program::new("sh")
        .args(["-c", "echo $$ > $PID_FILE.new; mv $PID_FILE.new $PID_FILE; exec sleep 1000"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let node = Node::builder("sleeper")
        .ward(Ward::process("sleep", program.env("PID_FILE", &file)))
        .bind("127.0.0.1:0")
        .await?;
    let told = async {
        loop {
            if let Ok(pid) = std::fs::read_to_string(&file) {
                println!("{}", pid.trim());
                break shutdown_signal().await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    node.run_until(told).await
}
