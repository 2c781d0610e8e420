//! Tests of machines together.

mod cluster;
mod driver;
pub(super) mod net;
mod recovery;
