//! The device: the tasks and their supervision, the commands of `spoke`, and the first process of an image.
//!
//! [`run`] is the composition root. Producers publish facts on `tokio::sync::watch`; the [`reconciler`] derives, plans and
//! applies, and is the only writer of kernel network state.
//!
//! # Tasks of `spoke run`
//! `vital`: its end ends the process. `restarting`: restarted with a backoff of 1 to 60 s. The two tasks of the thread
//! `reconciling` run on a runtime of their own at low priority, so that their passes delay no other task.
//!
//! | task | kind | module | runs | waits for |
//! |---|---|---|---|---|
//! | `net` | vital, thread `reconciling` | [`reconciler`] | always | facts, repairs, kernel events, resync timer |
//! | `changes` | vital, thread `reconciling` | [`changes`] | always | requests, `net status`, the confirmation deadline |
//! | `audit` | vital | [`audit`] | always | audit events |
//! | `repairs` | vital | [`audit`] | always | `net status` |
//! | `fleet-audit` | vital | [`audit`] | with `[control]` | `control status` |
//! | `status line` | restarting | [`run::component_status`] | always | `net status`, `components` |
//! | `clock` | restarting | [`clock`] | always | stamp timer, `clock confirmed` |
//! | `trust in the clock` | restarting | [`run::component_status`] | always | `clock anchor` |
//! | `health` | restarting | [`health`] | with `health.enabled` | connections, `net status`, `components`, `stopping` |
//! | `agent` | restarting | [`agent`] | with `agent.enabled` | connections, `net status`, `stopping` |
//! | `socket` | restarting | [`socket`] | always | connections |
//! | `names` | restarting | [`names`] | with a peer whose endpoint is a host name | refresh timer, `network events` |
//! | `control` | restarting | [`control_session`] | with `[control]` | responses of the control plane, `net status`, `uplink status`, session requests, deadlines |
//! | `fleet` | restarting | [`run::component_status`] | with `[control]` | `control status` |
//! | `uplink` | restarting | [`uplink`] | with an uplink | echo replies, look-ups, `network events`, `effective`, the session's deadline |
//! | `components` | restarting | [`run::component_status`] | with an uplink | `uplink status` |
//! | `candidates` | restarting | [`run::access`] | with an interface of `access = "nft"` | `effective` |
//! | `grants` | restarting | `spoke-chain` | with an interface of `access = "nft"` | `candidates`, `effective`, responses of the endpoints, refresh requests, deadlines |
//! | `access` | restarting | [`run::access`] | with an interface of `access = "nft"` | `grants report` |
//! | `release` | restarting | [`run::slots`] | on an image with slots, with `[control]` | `effective` |
//! | `slots` | restarting | [`run::slots`] | on an image with slots | poll of the updater's notice |
//!
//! # Channels
//! All but the last three are `watch` channels: readers see the newest value, not every one. `None` means: not published yet.
//!
//! | channel | value | written by | read by | a change means |
//! |---|---|---|---|---|
//! | `keys` | `Option<Arc<Keys>>` | start, `control` (rotation) | `net` | a key was replaced |
//! | `effective` | `Option<Arc<Effective>>` | start without `[control]`, else `control` | `net`, `uplink`, `grants`, `candidates`, `release` | the control plane's document changed |
//! | `choice` | `Option<Arc<UplinkChoice>>` | `uplink` | `net`, `control` | another hub, endpoint, standby, port epoch or rebuild |
//! | `names` | `Option<Arc<BTreeMap<HostPort, SocketAddr>>>` | `names` | `net` | an address of a named peer changed |
//! | `admitted` | `Option<Arc<Admitted>>` | `grants` | `net` | a peer was admitted or revoked |
//! | `api state` | `Option<Arc<ApiState>>` | `changes` | `net` | a change was made through the agent API or the socket |
//! | `repair` | `Option<Arc<Repair>>` | `changes` | `net` | a repair is to be carried out once |
//! | `net status` | [`reconciler::NetStatus`] | `net` | `changes`, `control`, `repairs`, `status line`, `health`, `agent`, `socket` | a pass has ended |
//! | `network events` | `u64` | `net` | `uplink`, `names` | the kernel reported a change of links, addresses or routes |
//! | `uplink status` | `UplinkStatus` | `uplink` | `control`, `components`, `socket` | the session's status changed |
//! | `control status` | `ControlStatus` | `control` | `fleet`, `fleet-audit`, `socket` | the control session's status changed |
//! | `candidates` | `Arc<BTreeSet<…>>` | `candidates` | `grants` | the peers that need a grant changed |
//! | `grants report` | `Option<Arc<Report>>` | `grants` | `access`, `socket` | a decision or the state of the endpoints changed |
//! | `update` | `Option<Notice>` | `slots` | `control` | the state of updates changed |
//! | `components` | `Components` | `trust in the clock`, `components`, `fleet`, `access`, `slots` | `status line`, `health`, `socket`, `control` | the status of a component changed |
//! | `stamped until` | `Option<Wall>` | `clock`, `control` (a new key) | `control` | handshakes may carry a time of the future, which the hub remembers |
//! | `clock anchor` | `Option<Anchor>` | `clock` | `trust in the clock`, `audit`, `changes` | the wall clock became trusted or untrusted |
//! | `clock confirmed` | `Option<Anchor>` | `control` | `clock` | the control plane has sent its time, signed, or accepted ours |
//! | `stopping` | `bool` | the composition root | `health`, `agent` | the process stops; connections are closed |
//! | requests | `mpsc` with a reply | `agent`, `socket` | `changes` | one change or repair |
//! | session requests | `mpsc` with a reply | `socket` | `control` | rotate the keys, or enrol again |
//! | audit events | `mpsc`, bounded; an event without room is lost and logged | all | `audit` | one audit record |
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod agent;
pub mod audit;
pub mod changes;
pub mod cli;
pub mod clock;
pub mod config_file;
pub mod control_session;
pub mod doctor;
pub mod enrolment;
pub mod found_keys;
pub mod health;
pub mod hub_endpoints;
pub mod key_files;
pub mod named_files;
pub mod names;
pub mod outlook;
pub mod reconciler;
pub mod reload;
pub mod run;
pub mod signed_request;
#[cfg(test)]
pub(crate) mod sim;
pub mod socket;
pub mod supervise;
pub mod update;
pub mod uplink;
pub mod wg_quick;
