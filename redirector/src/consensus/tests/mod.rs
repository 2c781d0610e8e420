//! Tests of machines together.

mod cluster;
mod net;
