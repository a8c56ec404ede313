//! `Directory.Watch`: where wards are, for clients.

use std::{collections::HashMap, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use wardkeep_proto::v1::{self, directory_server::Directory};

pub(super) struct Watch {
    view: watch::Receiver<Arc<v1::DirectoryView>>,
}

impl Watch {
    pub(super) fn new(view: watch::Receiver<Arc<v1::DirectoryView>>) -> Self {
        Self { view }
    }
}

#[tonic::async_trait]
impl Directory for Watch {
    type WatchStream = std::pin::Pin<Box<dyn Stream<Item = Result<v1::DirectoryView, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let views = WatchStream::new(self.view.clone()).map(move |view| Ok(only(&view, &service)));
        Ok(Response::new(Box::pin(views)))
    }
}

/// The part of a view that is about one service; all of it if none is named.
fn only(view: &v1::DirectoryView, service: &str) -> v1::DirectoryView {
    if service.is_empty() {
        return view.clone();
    }
    let members = view.members.iter().filter_map(|member| {
        let offers: Vec<_> = member.offers.iter().filter(|offer| offer.service == service).cloned().collect();
        (!offers.is_empty()).then(|| v1::Member { offers, ..member.clone() })
    });
    v1::DirectoryView { version: view.version, members: members.collect() }
}

/// The directory's view of a fleet: nodes that have ever attended, with what they offer.
pub(super) fn view(fleet: &v1::Fleet) -> Vec<v1::Member> {
    let mut wards: HashMap<&str, Vec<&v1::Ward>> = HashMap::new();
    for ward in &fleet.wards {
        wards.entry(&ward.node).or_default().push(ward);
    }
    let attended = fleet.nodes.iter().filter_map(|node| Some((node, node.info.as_ref()?)));
    attended
        .filter(|(_, info)| !info.boot_id.is_empty())
        .map(|(node, info)| {
            let healthy = node.verdict() == v1::Verdict::Healthy;
            let ready = healthy && node.attending && !node.draining;
            let wards = wards.get(info.name.as_str()).into_iter().flatten();
            let offers = wards.flat_map(|ward| offers(ward, ready)).collect();
            v1::Member { ready, offers, node: Some(info.clone()), suspected: node.suspected }
        })
        .collect()
}

fn offers(ward: &v1::Ward, node_ready: bool) -> impl Iterator<Item = v1::Offer> + '_ {
    let up = ward.state() == v1::WardState::Running && ward.verdict() == v1::Verdict::Healthy;
    ward.spec.iter().flat_map(move |spec| {
        spec.services.iter().map(move |service| v1::Offer {
            service: service.clone(),
            ward: spec.name.clone(),
            incarnation: ward.incarnation,
            ready: node_ready && up,
            suspected: ward.suspected,
        })
    })
}
