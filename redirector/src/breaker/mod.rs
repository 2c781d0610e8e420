//! Circuit breakers: who depends on something outside of this process asks here first, so that what fails is left alone
//! for a while instead of being hammered, and is tried again by one caller at a time.
//!
//! ```text
//!            threshold of failures within the window
//!   closed ───────────────────────────────────────────► open ◄─────────────┐
//!     ▲                                                   │ timeout          │ the trial fails, or
//!     │ the trial succeeds                                ▼                  │ does not come back
//!     └─────────────────────────────────────────────── half-open ───────────┘
//!                                                    one trial at a time
//! ```
//!
//! [`Machine`] decides and knows neither clock nor lock; [`Breaker`] is the machine with both, to be shared by any number
//! of callers; [`Breakers`] lists those that there are, for `redirector get breakers`.

mod machine;
mod shared;
#[cfg(test)]
mod tests;

pub use machine::{Leave, Machine, Policy, Refused, State, Transition};
pub use shared::{Breaker, Breakers, Open, Past, Permit, Status};
