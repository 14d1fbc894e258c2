//! The seams: every effect behind a small trait, with its real implementation. Nothing here decides anything.
pub mod clock;
pub mod disk;
pub mod kernel;
pub mod notify;
