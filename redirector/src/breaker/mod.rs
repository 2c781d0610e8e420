//! Circuit breakers: who depends on something outside of this process asks here first, so that what fails is left alone
//! for a while instead of being hammered, and is tried again by one caller at a time.
//!
//! ```text
//!            threshold of failures within the window
//!   closed ───────────────────────────────────────────► open ◄─────────────┐
//!     ▲                                                   │ timeout          │ the trial fails
//!     │ the trial succeeds                                ▼                  │
//!     └─────────────────────────────────────────────── half-open ───────────┘
//!                                                    one trial at a time
//! ```
//!
//! A call that is out for longer than the policy's patience is a failure too: what stalls is found out as what fails is.
//!
//! [`Machine`] decides and knows neither clock nor lock; [`Breaker`] is the machine with both, to be shared by any number
//! of callers; [`Breakers`] lists those that there are, for `redirector get breakers`.

mod machine;
mod shared;
#[cfg(test)]
mod tests;

pub use machine::{Leave, Machine, Policy, Refused, State, Transition};
pub use shared::{Breaker, Breakers, Open, Past, Permit, Status};
