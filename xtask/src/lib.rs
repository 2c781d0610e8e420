//! What `cargo xtask` can do. It is built before the BPF toolchain is there, so it does not depend on `redirector`.

pub mod bench;
pub mod demo;
pub mod ebpf;
pub mod kernel;
pub mod lab;
pub mod setup;
pub mod sim;
pub mod step;
pub mod test;
pub mod traffic;
