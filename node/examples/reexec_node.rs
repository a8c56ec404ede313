//! A node that can be told to restart in place: prints its address, attends `$SUPERVISOR`.
#![allow(clippy::print_stdout)]

use wardkeep_node::{Node, Ward, shutdown_signal};

#[tokio::main]
async fn main() -> Result<(), wardkeep_proto::Error> {
    let supervisor = std::env::var("SUPERVISOR").unwrap_or_default();
    let node = Node::builder("phoenix")
        .supervisor(supervisor)
        .ward(Ward::task("idle", |context| async move {
            context.cancelled().await;
            Ok(())
        }))
        .bind("127.0.0.1:0")
        .await?;
    println!("{}", node.local_addr());
    node.run_until(shutdown_signal()).await
}
