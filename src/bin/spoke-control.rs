//! The control plane binary: `spoke-control`.
fn main() {}
