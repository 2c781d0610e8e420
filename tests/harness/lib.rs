//! What the tests share: packets to send, a decoder that is not ours, a node's tables, and chance that repeats.

pub mod backend;
pub mod beat;
pub mod cluster;
pub mod decode;
pub mod fuzz;
pub mod generate;
pub mod leg;
pub mod neighbour;
pub mod node;
pub mod packet;
pub mod random;
pub mod watching;
