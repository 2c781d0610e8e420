//! Ownership: which nodes a slot ranks.
//!
//! This room computes rankings and never commits, sends or installs them. Every node computes the same ones.
//!
//! Two ways lead to a new ranking, with different guarantees:
//! - [`promote`] takes a dead node out of the *current* ranks. Only slots that named it change, the others keep their
//!   order, and since second ranks are dealt out evenly, its slots spread over all survivors.
//! - [`target`] computes what the ranks *should* be from the committed membership. Shares are exact at any time; for
//!   that, a changed membership also moves some slots that it did not have to. It is approached by planned moves, when
//!   nothing is at stake. [`Ranking`] does the same for memberships that follow each other.

mod favourites;
mod target;

pub(crate) use target::rank;
pub use target::{Ranking, Ranks, UnknownAlgorithm, promote, target};
