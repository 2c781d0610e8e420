//! Properties of the decisions, for arbitrary inputs.

mod arithmetic;
mod bytes;
mod disputes;
mod flow_table;
mod hash;
mod hops;
mod liveness;
mod paths;
mod plain;
