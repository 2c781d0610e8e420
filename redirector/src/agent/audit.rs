//! Whether tables are what was agreed on: this node's own against the agreed state, and its digests against those that
//! peers beat out. Without IO.
//!
//! | found | follows |
//! |---|---|
//! | a table in the maps is not as agreed | it is written anew |
//! | digests differ from most others' at the same applied index, for a while | this node's agreed state is wrong: it is fetched anew |
//! | the same, and this node leads | it lets another lead, and fetches the state from that one |
//! | digests differ from a few others' | theirs are wrong: it is noted, and they do the same |

use std::collections::{BTreeMap, HashMap};

use redirector_ebpf::tables::liveness::Heard;
use redirector_ebpf::tables::names::kind;
use redirector_ebpf::tables::{Row, Slot};
use siphasher::sip::SipHasher24;

use super::follower::Follower;
use super::lookout::digest;
use crate::consensus::state::{Pool, State};
use crate::dataplane::image::Image;
use crate::dataplane::maps::MapsError;
use crate::dataplane::registry::Registry;
use crate::dataplane::rows::{self, RowTables};

/// How long digests must differ at one applied index, nanoseconds: well above the time between two looks at the maps.
const LASTING: u64 = 3_000_000_000;

/// What a node says of its tables in beats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Said {
    /// Applied log index; 0: nothing is agreed on.
    pub applied: u64,
    /// Digest of the slot table.
    pub slots: u64,
    /// Digest of the pools' tables.
    pub pools: u64,
}

impl Said {
    /// What a peer's last beat says.
    pub fn of(heard: &Heard) -> Self {
        Self { applied: heard.applied.load(), slots: heard.slots.load(), pools: heard.pools.load() }
    }
}

/// What is found out of digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// A peer's tables have differed for a while.
    Differs {
        /// The peer.
        node: u8,
        /// The applied index.
        applied: u64,
        /// Whether it is this node that most others differ from.
        is_mine: bool,
    },
    /// They are the same again.
    Agrees {
        /// The peer.
        node: u8,
    },
}

/// What the maps should hold, of a state.
struct Expected {
    slots: Vec<crate::consensus::state::Slot>,
    pools: BTreeMap<String, Pool>,
    drains: BTreeMap<String, BTreeMap<String, u8>>,
    rows: BTreeMap<u16, Vec<Row>>,
}

/// What has been looked at so far.
#[derive(Default)]
pub struct Audit {
    expected: Option<Expected>,
    differing: BTreeMap<u8, (Said, Said, u64)>,
    told: BTreeMap<u8, ()>,
}

/// What the maps hold.
pub struct Held {
    /// Digest of the slot table.
    pub slots: u64,
    /// Digest of the pools' tables: of their backends' names, since numbers are each node's own.
    pub pools: u64,
    /// What is not as it was agreed on, in words.
    pub wrong: Vec<String>,
}

impl Audit {
    /// Looks at the maps.
    ///
    /// # Errors
    /// [`MapsError`], where they cannot be read.
    pub fn look(&mut self, follower: &Follower, image: &Image, tables: &impl RowTables) -> Result<Held, MapsError> {
        let (slots, mut wrong) = (tables.slots()?, Vec::new());
        let mut pools = BTreeMap::new();
        for &id in image.pools.keys() {
            pools.insert(id, tables.rows(&tables.pool(id)?)?);
        }
        if let Some(state) = follower.followed() {
            let expected = self.expect(state, follower, image);
            let differ = |(there, agreed): &(&Slot, &crate::consensus::state::Slot)| **there != (**agreed).into();
            let count = slots.iter().zip(&expected.slots).filter(differ).count();
            if count > 0 || slots.len() != expected.slots.len() {
                wrong.push(format!("{count} slots are not as agreed at {}", state.version));
            }
            for (id, rows) in &pools {
                let Some(agreed) = expected.rows.get(id) else { continue };
                let count = rows.iter().zip(agreed).filter(|(there, agreed)| there != agreed).count();
                if count > 0 || rows.len() != agreed.len() {
                    let name = image.registry.name(kind::POOL, u32::from(*id)).unwrap_or("?");
                    wrong.push(format!("{count} rows of pool {name} are not as agreed at {}", state.version));
                }
            }
        }
        Ok(Held { slots: digest(&slots), pools: digest_of_pools(&pools, &image.registry), wrong })
    }

    /// Another configuration is in force: rows may follow otherwise from the same state.
    pub fn forget(&mut self) {
        self.expected = None;
    }

    fn expect(&mut self, state: &State, follower: &Follower, image: &Image) -> &Expected {
        let is_current = |expected: &Expected| {
            expected.slots == state.slots && expected.pools == state.pools && expected.drains == state.drains
        };
        let kept = self.expected.take().filter(is_current);
        self.expected.insert(kept.unwrap_or_else(|| Expected {
            slots: state.slots.clone(),
            pools: state.pools.clone(),
            drains: state.drains.clone(),
            rows: follower.rows(state, image, true),
        }))
    }

    /// Writes the maps anew, as agreed.
    ///
    /// # Errors
    /// [`MapsError`].
    pub fn repair(
        &mut self,
        follower: &Follower,
        image: &mut Image,
        tables: &mut impl RowTables,
    ) -> Result<(), MapsError> {
        let Some(state) = follower.followed() else { return Ok(()) };
        self.expected = None;
        image.slots = state.slots.iter().map(|slot| (*slot).into()).collect();
        image.agreed = Some(follower.rows(state, image, true));
        let written = rows::follow(tables, image);
        image.agreed = Some(BTreeMap::new());
        written
    }

    /// Compares what this node says with what its peers last said.
    pub fn compare(
        &mut self,
        own: Said,
        leader: Option<u8>,
        me: u8,
        peers: &BTreeMap<u8, Said>,
        time: u64,
    ) -> Vec<Finding> {
        let mut findings = Vec::new();
        self.differing.retain(|node, _| peers.contains_key(node));
        for (&node, &said) in peers {
            if own.applied == 0 || said.applied != own.applied {
                self.differing.remove(&node);
            } else if said == own {
                self.differing.remove(&node);
                if self.told.remove(&node).is_some() {
                    findings.push(Finding::Agrees { node });
                }
            } else {
                let known = self.differing.get(&node).filter(|(mine, theirs, _)| (*mine, *theirs) == (own, said));
                let since = known.map_or(time, |(_, _, since)| *since);
                self.differing.insert(node, (own, said, since));
                if time.saturating_sub(since) >= LASTING && self.told.insert(node, ()).is_none() {
                    let is_mine = is_wrong(own, leader, me, peers);
                    findings.push(Finding::Differs { node, applied: own.applied, is_mine });
                }
            }
        }
        findings
    }
}

/// Whether others that have applied as much agree on something else: more of them than agree with this node, or as many,
/// the leader among them.
fn is_wrong(own: Said, leader: Option<u8>, me: u8, peers: &BTreeMap<u8, Said>) -> bool {
    let mut votes: BTreeMap<Said, (usize, bool)> = BTreeMap::from([(own, (1, leader == Some(me)))]);
    for (node, said) in peers.iter().filter(|(_, said)| said.applied == own.applied) {
        let vote = votes.entry(*said).or_default();
        *vote = (vote.0 + 1, vote.1 || leader == Some(*node));
    }
    let mine = votes[&own];
    votes.into_values().any(|vote| vote > mine)
}

/// A digest of pools' tables that is the same on every node with the same tables.
fn digest_of_pools(pools: &BTreeMap<u16, Vec<Row>>, registry: &Registry) -> u64 {
    let hasher = SipHasher24::new();
    let name = |kind, id: u16| registry.name(kind, u32::from(id)).unwrap_or_default();
    let mut names: HashMap<u16, u64> = HashMap::new();
    let mut digests: Vec<(&str, u64)> = Vec::new();
    for (&id, rows) in pools {
        let mut bytes = Vec::with_capacity(rows.len() * 9);
        for row in rows {
            let backend = names
                .entry(row.current())
                .or_insert_with(|| hasher.hash(name(kind::BACKEND, row.current()).as_bytes()));
            bytes.extend(backend.to_le_bytes());
            bytes.push(u8::from(row.disputed()));
        }
        digests.push((name(kind::POOL, id), hasher.hash(&bytes)));
    }
    digests.sort_unstable();
    let whole: Vec<u8> = digests
        .into_iter()
        .flat_map(|(name, digest)| [hasher.hash(name.as_bytes()).to_le_bytes(), digest.to_le_bytes()].concat())
        .collect();
    hasher.hash(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: Said = Said { applied: 7, slots: 1, pools: 2 };
    const WRONG: Said = Said { applied: 7, slots: 1, pools: 3 };

    fn peers(said: &[(u8, Said)]) -> BTreeMap<u8, Said> {
        said.iter().copied().collect()
    }

    #[test]
    fn what_differs_for_long_enough_at_one_index_is_told_once() {
        let mut audit = Audit::default();
        let others = peers(&[(2, RIGHT), (3, WRONG)]);
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &others, 0), []);
        let behind = peers(&[(2, RIGHT), (3, Said { applied: 6, ..WRONG })]);
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &behind, LASTING / 2), []);
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &others, LASTING), []);
        let differs = Finding::Differs { node: 3, applied: 7, is_mine: false };
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &others, 2 * LASTING), [differs]);
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &others, 3 * LASTING), []);
        let same = peers(&[(2, RIGHT), (3, RIGHT)]);
        assert_eq!(audit.compare(RIGHT, Some(2), 1, &same, 3 * LASTING), [Finding::Agrees { node: 3 }]);
    }

    #[test]
    fn most_are_right_and_the_leader_where_there_are_no_most() {
        assert!(is_wrong(WRONG, Some(1), 1, &peers(&[(2, RIGHT), (3, RIGHT)])), "a leader alone is wrong");
        assert!(!is_wrong(RIGHT, Some(2), 1, &peers(&[(2, WRONG), (3, RIGHT)])));
        assert!(is_wrong(WRONG, Some(2), 1, &peers(&[(2, RIGHT)])));
        assert!(!is_wrong(RIGHT, Some(1), 1, &peers(&[(2, WRONG)])));
        assert!(!is_wrong(RIGHT, Some(3), 1, &peers(&[(2, WRONG), (3, Said { applied: 8, ..WRONG })])));
    }

    #[test]
    fn nothing_is_compared_where_nothing_is_agreed_on() {
        let mut audit = Audit::default();
        let (own, others) = (Said { applied: 0, ..RIGHT }, peers(&[(2, Said { applied: 0, ..WRONG })]));
        assert!((0..9).all(|at| audit.compare(own, None, 1, &others, at * LASTING).is_empty()));
    }
}
