//! The node agent API: existing multi-node panels drive this node through signed HTTP requests.
//!
//! Pure parts: who asked ([`auth`], [`replay`]), what is asked ([`json`], [`body`], [`wgconf`], [`routes`]), what is
//! answered ([`answer`]). `spoke-node` serves it. Whatever a request changes is an edit of [`spoke_change`].
pub mod answer;
pub mod auth;
pub mod body;
pub mod json;
pub mod openapi;
pub mod replay;
pub mod routes;
pub mod wgconf;
