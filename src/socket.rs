//! The local control socket: what the command line asks of the running supervisor.
//!
//! A Unix socket in the runtime directory, mode 0660. One line of JSON asks, one line answers. The group may read; what
//! changes anything is for root (and the supervisor's own user) alone, by the peer credentials the kernel vouches for.
pub mod task;
pub mod wire;
