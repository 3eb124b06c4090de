//! Why requests went where they went: remembered for a while, told to whoever paid for them.

use std::collections::{HashMap, VecDeque};

use cuckoo_wire::message::{Explanation, PlacementReasons, RequestId};

use crate::ledger::ClientId;

/// Requests whose ways are remembered; the oldest are forgotten first.
const REQUESTS_MAX: usize = 4_096;
/// Placements of one request that are remembered: a request for many vectors has one for each text.
const PLACEMENTS_MAX: usize = 16;

/// The newest requests' ways.
#[derive(Default)]
pub(super) struct Explanations {
    order: VecDeque<RequestId>,
    ways: HashMap<RequestId, (ClientId, Vec<PlacementReasons>)>,
}

impl Explanations {
    /// A request of `client` was placed.
    pub(super) fn add(&mut self, request: RequestId, client: ClientId, reasons: PlacementReasons) {
        let (_, way) = self.ways.entry(request).or_insert_with(|| {
            self.order.push_back(request);
            (client, Vec::new())
        });
        if way.len() < PLACEMENTS_MAX {
            way.push(reasons);
        }
        if self.order.len() > REQUESTS_MAX {
            self.order.pop_front().and_then(|oldest| self.ways.remove(&oldest));
        }
    }

    /// The way of a request; `None` where it is forgotten, was never placed, or is another client's.
    pub(super) fn of(&self, request: RequestId, client: ClientId) -> Option<Explanation> {
        let (owner, placements) = self.ways.get(&request)?;
        (*owner == client).then(|| Explanation { request, placements: placements.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cuckoo_wire::message::ServiceClass;

    #[test]
    fn the_newest_are_told_to_who_paid() {
        let mut explanations = Explanations::default();
        let reasons = |waiting| PlacementReasons {
            waited_ms: 0.0,
            waiting,
            replicas: 1,
            other_numerics: 0,
            class: ServiceClass::Standard,
            served_tokens: 0,
            prompt_tokens: 1,
            candidates: Vec::new(),
        };
        let request = |n: u16| {
            let mut id = [0; 16];
            id[..2].copy_from_slice(&n.to_le_bytes());
            RequestId(id)
        };
        let (me, you) = (ClientId([1; 8]), ClientId([2; 8]));
        for n in 0..5_000 {
            explanations.add(request(n), me, reasons(1));
            explanations.add(request(n), me, reasons(2));
        }
        let told = explanations.of(request(4_999), me).map(|way| way.placements.iter().map(|p| p.waiting).collect());
        assert_eq!(told, Some(vec![1, 2]));
        assert!(explanations.of(request(4_999), you).is_none(), "it is nobody else's");
        assert!(explanations.of(request(903), me).is_none() && explanations.of(request(904), me).is_some());
        assert_eq!((explanations.order.len(), explanations.ways.len()), (REQUESTS_MAX, REQUESTS_MAX));
    }
}
