//! The node agent API: existing multi-node panels manage this node through signed HTTP requests.
//!
//! Authentication ([`auth`], [`replay`]), requests ([`routes`], [`json`], [`body`], [`wgconf`]), responses ([`answer`]).
//! `spoke-node` serves them. A request that changes something becomes an edit of [`spoke_change`].
pub mod answer;
pub mod auth;
pub mod body;
pub mod json;
pub mod openapi;
pub mod replay;
pub mod routes;
pub mod wgconf;
