//! What the kernel knows of the network: interfaces, neighbours, local routes, what a driver's XDP can do.
//!
//! This room asks, watches, keeps neighbour entries, and puts in routes of its own kind, in a table of their own; it never
//! changes an interface, an address or anybody else's route.
//!
//! ```text
//! interfaces, neighbours, routes, features ─► Request ─► Connection ─► kernel
//!                                    Watch ◄── Event ◄── (link and neighbour groups)
//! ```
//!
//! A socket belongs to the network namespace of the thread that opens it, which is the thread that first polls one
//! of these functions, or that calls [`watch`].
//!
//! Built on `netlink-sys`, the socket under `rtnetlink`, and not on `rtnetlink` itself: that one decodes every
//! attribute of a message, so that one whose form a newer kernel has changed costs the whole dump, where a dozen
//! attributes are all that is needed here; and it queues events without bound, where here the kernel's own buffer
//! is the bound and [`Event::Missed`] tells of its overflow. `neli` decodes lazily too, but wants each family of
//! messages described in types of its own, which is more text than reading them.

mod connection;
mod features;
mod interface;
mod neighbour;
mod owned;
mod received;
mod route;
#[cfg(test)]
mod tests;
mod watch;
mod wire;

use std::io;

pub use features::{XdpFeatures, xdp_features};
pub use interface::{Attached, AttachedMode, Interface, interface, interfaces};
pub use neighbour::{Kept, Neighbour, NeighbourState, drop_neighbour, keep_neighbour, neighbours};
pub use owned::{drop_route, owned_routes, put_route};
pub use received::{Received, received};
pub use route::{DefaultRoute, Routes, routes};
pub use watch::{Event, Watch, watch};

/// Why the kernel could not be asked, or what it answered instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket, or one that does not work.
    #[error("netlink: cannot {doing}")]
    Socket {
        /// The step that failed.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The kernel said no.
    #[error("the kernel refuses to {request}{}", because(says))]
    Refused {
        /// What was asked for.
        request: &'static str,
        /// The kernel's own words, if it had any.
        says: Option<String>,
        /// The error number.
        #[source]
        source: io::Error,
    },
    /// A dump that was never consistent, however often it was repeated.
    #[error("the kernel's tables change faster than they can be read, while trying to {0}")]
    Restless(
        /// What was asked for.
        &'static str,
    ),
    /// There is no interface of this name.
    #[error("there is no interface `{name}`{}", alternatives(near, others))]
    NoInterface {
        /// The name that was asked for.
        name: String,
        /// Names that were probably meant.
        near: Vec<String>,
        /// All the other names.
        others: Vec<String>,
    },
}

fn because(says: &Option<String>) -> String {
    says.as_ref().map(|says| format!(" ({says})")).unwrap_or_default()
}

fn alternatives(near: &[String], others: &[String]) -> String {
    // A host of many containers has hundreds; those are found with `ip link`.
    const LISTED_MAX: usize = 8;
    match (near, others) {
        ([], []) => String::new(),
        ([], all) if all.len() <= LISTED_MAX => format!("; there are {}", all.join(", ")),
        ([], _) => "; `ip link` lists those that there are".to_owned(),
        (near, _) => format!("; did you mean {}?", near.join(" or ")),
    }
}
