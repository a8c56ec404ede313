//! Sessions that come late or twice: a node's messages of before, delivered once more.

use std::time::Duration;

use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use uuid::Uuid;
use wardkeep_proto::v1::{
    self, WardState, node_message::Kind as Up, operator_client::OperatorClient,
    stewardship_client::StewardshipClient,
};

/// Attends as the node, with what it may have said some time ago: in this boot, or in one before. Then tells
/// again that incarnations ended which ended long ago.
pub async fn late_session(
    name: &str,
    same_boot: bool,
    mut operator: OperatorClient<Channel>,
    channel: Channel,
) -> String {
    let Ok(fleet) = operator.get_fleet(v1::GetFleetRequest {}).await else { return "no picture".to_owned() };
    let fleet = fleet.into_inner();
    let known = |node: &&v1::Node| node.info.as_ref().is_some_and(|info| info.name == name);
    let Some(mut info) = fleet.nodes.iter().find(known).and_then(|node| node.info.clone()) else {
        return "not known".to_owned();
    };
    if !same_boot {
        let Ok(boot) = Uuid::parse_str(&info.boot_id) else { return "no boot".to_owned() };
        info.boot_id = older(boot).to_string();
    }
    let mut wards: Vec<_> = fleet.wards.into_iter().filter(|ward| ward.node == name).collect();
    for ward in &mut wards {
        if !same_boot || ward.incarnation > 1 {
            ward.incarnation = ward.incarnation.saturating_sub(1).max(1);
        }
        ward.set_state(WardState::Running);
    }
    let ended: Vec<_> = (0..).zip(&wards).map(|(slot, ward)| (slot, ward.incarnation)).collect();
    let lately: Vec<_> = if same_boot {
        // Only what has been said before: incarnations that have ended.
        ended.iter().filter(|(slot, _)| wards[*slot as usize].restarts > 0).copied().collect()
    } else {
        ended
    };
    let hello = v1::Hello { protocol: 1, node: Some(info), wards, ..Default::default() };
    let (up, queue) = mpsc::channel(64);
    let say = |kind| up.try_send(v1::NodeMessage { kind: Some(kind) }).is_ok();
    let _ = say(Up::Hello(hello));
    let mut client = StewardshipClient::new(channel);
    let opened = client.attend(ReceiverStream::new(queue)).await;
    let mut down = match opened {
        Ok(down) => down.into_inner(),
        Err(status) => return format!("refused: {:?}", status.code()),
    };
    match down.message().await {
        Ok(Some(_)) => {}
        Ok(None) => return "ended".to_owned(),
        Err(status) => return format!("refused: {:?}", status.code()),
    }
    for (slot, incarnation) in lately {
        let exit = v1::Exit { kind: v1::ExitKind::Panicked.into(), ..Default::default() };
        say(Up::WardChange(v1::WardChange {
            slot,
            incarnation,
            state: WardState::Stopped.into(),
            exit: Some(exit),
            ..Default::default()
        }));
    }
    sleep(Duration::from_millis(fastrand::u64(0..1_500))).await;
    "told".to_owned()
}

/// A boot of an hour before.
fn older(boot: Uuid) -> Uuid {
    let mut bytes = *boot.as_bytes();
    let millis = bytes[..6].iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
    let before = millis.saturating_sub(3_600_000);
    bytes[..6].copy_from_slice(&before.to_be_bytes()[2..]);
    Uuid::from_bytes(bytes)
}
