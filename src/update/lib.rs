//! A/B updates: signed bundles are written to the slot that is not running, put on trial, and committed when they work.
//!
//! The boot loader counts the tries (systemd-boot: in the name of the entry; U-Boot: in [`uboot`]'s variables);
//! [`machine`] decides. Existing updaters add 41 to 55 packages to a root of 20 MiB and cannot decide whether a
//! *tunnel* works.
//!
//! - [`slot`]: the two slots, boot entries, what the boot loader starts next.
//! - [`manifest`]: content and signatures of a bundle.
//! - [`machine`]: a trial, from the first boot of a new slot to its commit or rejection.
//! - [`record`]: what the device stores about updates.
//! - [`offer`]: whether a verified bundle is installed.
//! - [`schedule`]: when a download that no person started may begin.
//! - [`kept`]: how much of a download is on the disk.
//! - [`seal`]: what is remembered apart from the state partition.
//! - [`notice`]: messages between supervisor and updater.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods))]

pub mod kept;
pub mod machine;
pub mod manifest;
pub mod notice;
pub mod offer;
pub mod record;
pub mod schedule;
pub mod seal;
pub mod slot;
pub mod uboot;
