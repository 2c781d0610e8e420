//! What the kernel's side and the host's side of Redirector agree on, and every decision about a packet.
//!
//! The library builds for the host and for BPF. It holds the vocabulary (map keys and values) and the decisions as plain
//! functions over two traits: [`packet::Frame`], the bytes of one packet, and [`tables::Tables`], what a node knows.
//! The XDP programs in the binary of this crate give them a real packet and real maps; tests, `why` and the simulation
//! give them a slice and ordinary memory. So there is one packet path, and it can be held against itself.
//!
//! ```text
//! bytes ─ parse ─ (beat) ─ neighbour ─ service ─ admit ─ row ─ owner ─ flow ─ path ─ transmit ─ verdict
//! ```
//!
//! Layout rules: map keys and values are `repr(C)`, without implicit padding (asserted), addresses and ports in them are
//! in network order as they stand in the packet, all other numbers in the machine's order.
#![no_std]
#![deny(missing_docs)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod beat;
pub mod bench;
pub mod decap;
pub mod hash;
pub mod hop;
pub mod liveness;
pub mod packet;
pub mod paths;
pub mod reason;
pub mod siphash;
pub mod stations;
pub mod sync;
pub mod tables;
mod verifier;
