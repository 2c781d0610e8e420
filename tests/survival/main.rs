//! The whole, end to end: real packets, real sockets and real SIGKILL in network namespaces.
//!
//! Each topic has a lab of its own. One is up at a time, since each takes what the machine has: see [`scene::Scene::up`].

mod agent;
mod agreement;
mod ailing;
mod announced;
mod audit;
mod backends;
mod bfd;
mod change;
mod clock;
mod disk;
mod drain;
mod drains;
mod flapping;
mod floods;
mod guarded;
mod holders;
mod kills;
mod links;
mod liveness;
mod membership;
mod million;
mod partition;
mod passive;
mod paths;
mod pmtu;
mod probes;
mod quiet;
mod raw;
mod recovery;
mod refusal;
mod renewal;
mod replicated;
mod routed;
mod scene;
mod services;
mod shedding;
mod silent;
mod stranger;
mod takeover;
mod told;
mod truth;
mod unload;
mod witness;
