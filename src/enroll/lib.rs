//! Enrolment of a device and its control session: identity, signed requests, the signed state document.
//!
//! The device creates its own keys; no private half leaves it. It accepts only a [`document::StateDocument`] that names
//! this node, is newer than the last one and is signed by a key pinned at enrolment. A document is stored only after it
//! was applied and the hub has answered through it; the device boots from the last one stored.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod audit;
mod bounds;
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
