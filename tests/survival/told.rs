//! What agents tell of paths, as a user's script would read it: the JSON of `get paths`.

use anyhow::Result;
use serde::Deserialize;

use crate::scene::Scene;

/// A path, as `get paths` tells of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Path {
    pub(crate) pool: String,
    pub(crate) backend: String,
    pub(crate) rank: u8,
    pub(crate) alive: bool,
    pub(crate) health: Option<Health>,
    pub(crate) packets: u64,
}

/// What the agent knows of it.
#[derive(Debug, Deserialize)]
pub(crate) struct Health {
    pub(crate) state: String,
    pub(crate) why: Option<String>,
    pub(crate) beats: Option<Beats>,
    pub(crate) probe: Option<Probe>,
    pub(crate) flows: Option<Flows>,
}

/// What its flows say.
#[derive(Debug, Deserialize)]
pub(crate) struct Flows {
    pub(crate) recent: Counts,
    pub(crate) complaint: Option<String>,
}

/// What was counted of them lately.
#[derive(Debug, Deserialize)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) again: u64,
}

/// What is measured of its beats.
#[derive(Debug, Deserialize)]
pub(crate) struct Beats {
    pub(crate) answered: u64,
}

/// What its probe says.
#[derive(Debug, Deserialize)]
pub(crate) struct Probe {
    pub(crate) kind: String,
    pub(crate) says: String,
}

/// All paths, as a node tells of them.
pub(crate) fn paths(scene: &Scene, node: &str) -> Result<Vec<Path>> {
    Ok(serde_json::from_str(&scene.done(node, &["get", "paths", "-o", "json"])?)?)
}
