//! vip
pub mod machine;
pub mod plan;
