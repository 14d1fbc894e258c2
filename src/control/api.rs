//! The HTTP API: `devices` and `peers` for nodes, the other handlers for operators, described by one OpenAPI document.
pub mod auth;
pub mod devices;
pub mod extract;
pub mod fleet;
pub mod keys;
pub mod networks;
pub mod nodes;
pub mod peers;
pub mod polls;
pub mod releases;
pub mod replay;
pub mod response;
pub mod routes;
pub mod state;
pub mod tokens;
pub mod view;
