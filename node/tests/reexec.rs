//! Restart in place: the same process and port, a new boot, and nobody turned away.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, clippy::disallowed_methods)]

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{supervisor::*, *};
use tokio::{io::AsyncBufReadExt as _, net::TcpStream};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use wardkeep_proto::{
    duration,
    v1::{self, command::Kind, node_message::Kind as Up},
};

#[tokio::test]
async fn a_node_restarts_in_place_and_refuses_no_connection_meanwhile() {
    within(async {
        let mut supervisor = FakeSupervisor::start().await;
        let mut process = example_with("reexec_node", |command| {
            command.env("SUPERVISOR", &supervisor.uri);
        });
        let mut lines = tokio::io::BufReader::new(process.stdout.take().unwrap()).lines();
        let address: SocketAddr = lines.next_line().await.unwrap().unwrap().parse().unwrap();
        let connects = tokio::task::spawn(async move {
            let mut connected = 0u64;
            loop {
                match TcpStream::connect(address).await {
                    Ok(_) => connected += 1,
                    Err(error) => return (connected, error),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });

        let mut boots = Vec::new();
        // Twice: what is inherited can be handed on.
        for epoch in 1..=3 {
            let (mut session, hello) = supervisor.session().await;
            let info = hello.node.unwrap();
            assert_eq!(info.pid, process.id().unwrap());
            assert_eq!(info.uri, format!("http://{address}"));
            assert!(!boots.contains(&info.boot_id), "a new boot");
            boots.push(info.boot_id);
            session.welcome(epoch, Duration::from_secs(5)).await;
            if epoch == 3 {
                break;
            }
            let drain_timeout = Some(duration(Duration::from_millis(500)));
            session.command(epoch, Kind::RestartNode(v1::RestartNode { drain_timeout })).await.unwrap();
            session
                .find(|up| matches!(up, Up::Goodbye(v1::Goodbye { restarting: true })).then_some(()))
                .await;
            session.closed().await;
            drop(session);
            let again = lines.next_line().await.unwrap().unwrap();
            assert_eq!(again.parse::<SocketAddr>().unwrap(), address);
        }
        let channel =
            wardkeep_client::endpoint(&format!("http://{address}")).unwrap().connect().await.unwrap();
        HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
        assert!(!connects.is_finished(), "a connection was refused: {:?}", connects.await);
        connects.abort();

        let pid = process.id().unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        assert!(process.wait().await.unwrap().success());
    })
    .await;
}
