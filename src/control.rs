//! The control plane: makes a fleet out of devices. Feature `control`; the device build carries none of it.
pub mod ipam;
