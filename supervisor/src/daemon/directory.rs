//! `Directory.Watch`: where wards are, for clients.

use std::sync::Arc;

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
    fleet
        .nodes
        .iter()
        .filter_map(|node| {
            let info = node.info.clone()?;
            let healthy = node.verdict() == v1::Verdict::Healthy;
            let ready = healthy && node.attending && !node.draining;
            let wards = fleet.wards.iter().filter(|ward| ward.node == info.name);
            let offers = wards.flat_map(|ward| {
                let spec = ward.spec.clone().unwrap_or_default();
                let up = ward.state() == v1::WardState::Running && ward.verdict() == v1::Verdict::Healthy;
                let (ward, incarnation) = (spec.name, ward.incarnation);
                spec.services.into_iter().map(move |service| v1::Offer {
                    service,
                    ward: ward.clone(),
                    incarnation,
                    ready: ready && up,
                })
            });
            Some(v1::Member { ready, offers: offers.collect(), node: Some(info) })
        })
        .collect()
}
