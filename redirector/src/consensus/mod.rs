//! Agreement between the nodes' agents.

pub mod disk;
pub mod frame;
pub mod log;
pub mod machine;
pub mod planner;
pub mod redb;
pub mod state;
pub mod wire;

#[cfg(test)]
mod tests;
