//! The plan: for each VIP its holder and successors, agreed on before anything fails.
//!
//! The leader has it committed; VIPs that are not in the committed plan yet, and nodes that agree on nothing, go by the one
//! that every node computes alike from the configuration. Holders are spread evenly over the nodes by weight, and so are
//! the first successors of each holder's VIPs; the others rank by chance. While the plan stands, a node's death changes
//! only the VIPs that it held: each goes to the next of its list. A changed membership makes a new plan, which may move
//! some more, so that the shares stay even.

use std::collections::BTreeMap;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use crate::config::{Config, Ingress};
use crate::ownership;

/// VIPs with the nodes that may hold them, best first.
pub type Plan = BTreeMap<IpAddr, Vec<u8>>;

/// The plan for these VIPs. `members` are (node id, weight); one without weight holds nothing.
pub fn plan(vips: impl IntoIterator<Item = IpAddr>, members: &[(u8, u32)]) -> Plan {
    // In the order of their hashes, so that the plan does not depend on the order in which they are given.
    let keyed: BTreeMap<(u64, IpAddr), ()> = vips.into_iter().map(|vip| ((hash(vip), vip), ())).collect();
    let keys: Vec<u64> = keyed.keys().map(|(key, _)| *key).collect();
    let ranked = ownership::rank(members, &keys, members.len());
    keyed.into_keys().map(|(_, vip)| vip).zip(ranked).collect()
}

/// The plan that holds for a configuration, where this one is committed.
pub fn committed(config: &Config, committed: &BTreeMap<String, Vec<u8>>) -> Plan {
    let mut plan = of(config);
    for (vip, ranks) in &mut plan {
        if let Some(agreed) = committed.get(&vip.to_string()) {
            ranks.clone_from(agreed);
        }
    }
    plan
}

/// The plan for the VIPs of a configuration that nodes hold.
pub fn of(config: &Config) -> Plan {
    let held = config.vips.iter().filter(|vip| vip.ingress == Ingress::Arp).map(|vip| vip.address.address());
    match config.members.is_empty() {
        true => plan(held, &[(config.node.id, 1)]),
        false => plan(held, &config.members.iter().map(|member| (member.id, member.weight)).collect::<Vec<_>>()),
    }
}

fn hash(vip: IpAddr) -> u64 {
    // Never changes: nodes of several versions must agree.
    let hasher = SipHasher24::new_with_keys(0, 0);
    match vip {
        IpAddr::V4(v4) => hasher.hash(&v4.octets()),
        IpAddr::V6(v6) => hasher.hash(&v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn vips(numbers: impl IntoIterator<Item = u32>) -> Vec<IpAddr> {
        numbers.into_iter().map(|number| Ipv4Addr::from(0x0a00_0000 | number & 0xff_ffff).into()).collect()
    }

    fn counted(nodes: impl Iterator<Item = u8>) -> HashMap<u8, usize> {
        let mut counts = HashMap::new();
        nodes.for_each(|node| *counts.entry(node).or_default() += 1);
        counts
    }

    fn equal(nodes: &BTreeSet<u8>) -> Vec<(u8, u32)> {
        nodes.iter().map(|node| (*node, 1)).collect()
    }

    proptest! {
        #[test]
        fn every_node_is_in_every_list_once(
            numbers in prop::collection::btree_set(any::<u32>(), 0..60), nodes in prop::collection::btree_set(1u8..=254, 1..12)
        ) {
            let plan = plan(vips(numbers.iter().copied()), &equal(&nodes));
            for ranks in plan.values() {
                prop_assert_eq!(&ranks.iter().copied().collect::<BTreeSet<_>>(), &nodes);
                prop_assert_eq!(ranks.len(), nodes.len());
            }
        }

        #[test]
        fn holders_are_even_and_so_is_what_the_dead_leave(
            numbers in prop::collection::btree_set(0u32..0xff_ffff, 1..200), nodes in prop::collection::btree_set(1u8..=254, 2..9)
        ) {
            let plan = plan(vips(numbers.iter().copied()), &equal(&nodes));
            let holders = counted(plan.values().map(|ranks| ranks[0]));
            let of = |node: &u8| holders.get(node).copied().unwrap_or(0);
            let (least, most) = (nodes.iter().map(of).min().unwrap(), nodes.iter().map(of).max().unwrap());
            prop_assert!(most - least <= 1, "{holders:?}");
            for dead in &nodes {
                let heirs = counted(plan.values().filter(|ranks| ranks[0] == *dead).map(|ranks| ranks[1]));
                let even = of(dead).div_ceil(nodes.len() - 1);
                prop_assert!(heirs.values().all(|count| *count <= even), "{dead} leaves {heirs:?}");
            }
        }

        #[test]
        fn the_order_of_vips_and_members_does_not_matter(
            numbers in prop::collection::vec(any::<u32>(), 0..50), nodes in prop::collection::btree_set(1u8..=254, 1..9)
        ) {
            let (forth, mut back) = (vips(numbers.iter().copied()), vips(numbers.iter().rev().copied()));
            back.extend(forth.first().copied());
            let mut members = equal(&nodes);
            let one = plan(forth, &members);
            members.reverse();
            prop_assert_eq!(one, plan(back, &members));
        }
    }

    #[test]
    fn weights_count() {
        let plan = plan(vips(0..300), &[(1, 1), (2, 2), (3, 0)]);
        let holders = counted(plan.values().map(|ranks| ranks[0]));
        assert_eq!(holders, HashMap::from([(1, 100), (2, 200)]));
    }

    #[test]
    fn the_plan_never_changes() {
        let plan = plan(vips(1..=6), &[(1, 1), (2, 1), (3, 1)]);
        let holders: Vec<u8> = plan.values().map(|ranks| ranks[0]).collect();
        assert_eq!(holders, [3, 2, 3, 2, 1, 1], "nodes of other versions compute this one");
    }

    #[test]
    fn a_left_node_s_vips_move_and_few_others() {
        for nodes in [3u8, 5, 8] {
            let members: Vec<(u8, u32)> = (1..=nodes).map(|id| (id, 1)).collect();
            let (old, new) = (plan(vips(0..1_000), &members), plan(vips(0..1_000), &members[1..]));
            let moved = old.iter().filter(|(vip, ranks)| ranks[0] != 1 && new[*vip][0] != ranks[0]).count();
            assert!(moved <= 100, "of {nodes} nodes one left, and {moved} of 1,000 VIPs moved that it did not hold");
        }
    }
}
