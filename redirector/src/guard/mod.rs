//! Guarding an application: when it is started, when it has been silent for too long, and when it is given up.
//!
//! The machine knows neither processes nor sockets nor clock; `redirector guard` is its shell. Of a backend's application the
//! nodes learn by a door that their probes find open or shut.

mod application;
mod door;
mod machine;
mod mark;
mod seat;
mod signs;

pub use application::Application;
pub use door::Door;
pub use machine::{Action, Machine, Policy};
pub use seat::Seat;
pub use signs::Signs;
