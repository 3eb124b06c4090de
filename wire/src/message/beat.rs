//! What a replica says when it has no news.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits::STEP_DUE_MAX;

/// A replica's heartbeat, from whoever plans its steps: it is said by what must live for sequences to get on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Steps computed since the offer. One that computes a long prompt has no other way to say that it gets on.
    pub steps: u64,
    /// What the step that is computed now was expected to take, in milliseconds; 0 where none is computed. At most
    /// [`STEP_DUE_MAX`].
    pub due_ms: u32,
}

impl Beat {
    /// After `steps`, with a step under way that is expected to take `due`.
    pub fn new(steps: u64, due: Duration) -> Self {
        Self { steps, due_ms: due.min(STEP_DUE_MAX).as_millis() as u32 }
    }

    /// What is expected.
    pub fn due(&self) -> Duration {
        Duration::from_millis(u64::from(self.due_ms))
    }
}
