//! How a device becomes a node and follows its control plane: identity, enrolment, the signed state document.
//!
//! The device makes its own keys and the control plane never sees a private half. What it may do is bounded by what it
//! signs: a [`document::StateDocument`] that names this node, is newer than the last one and was signed by a key pinned
//! at enrolment. Everything else the network says is ignored, and the last good document outlives every outage: it is
//! kept only after it was applied and the hub has answered through it, and it is what the device boots from.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod audit;
pub mod confirm;
pub mod document;
pub mod events;
pub mod identity;
pub mod machine;
pub mod request;
pub mod rotation;
pub mod settings;
pub mod status;
pub mod wire;
