//! Tests of machines together.

mod cluster;
pub(super) mod net;
