//! Guarding an application: when it is started, when it has been silent for too long, and when it is given up.
//!
//! The machine knows neither processes nor sockets nor clock; `redirector guard` is its shell.

mod machine;

pub use machine::{Action, Machine, Policy};
