//! A/B updates: signed bundles go into the slot that is not running, are tried, and are committed only when they work.
//!
//! # Why our own code and not an updater of the field
//! What has to happen on the device is small: check a signature, write a partition, place one file, count boots, decide.
//! The well-kept updaters bring 41 to 55 more packages (D-Bus and curl among them) into a root of 20 MiB, and none of them
//! knows when a *tunnel* is good: the decision below would be ours all the same. So the boot loader counts the tries
//! (systemd-boot by the name of the entry, U-Boot by a script over its checksummed environment), and this module decides.
//!
//! # Map
//! - [`slot`]: the two slots, the names of boot entries, what a boot loader will choose.
//! - [`manifest`]: what a bundle says and who may sign it.
//! - [`machine`]: a trial, from the first boot of a new slot to its commit or its end.
//! - [`record`]: what a device remembers, and what the slots mean in its light.
//! - [`notice`]: what is wanted by the control plane, and what is told about it.
//! - `sys/bundle.rs`: writes a bundle into the other slot.
//! - `node/update.rs`: watches a trial; the only place that waits.
//! - [`uboot`]: U-Boot's environment block as a value.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod machine;
pub mod manifest;
pub mod notice;
pub mod record;
pub mod slot;
pub mod uboot;
