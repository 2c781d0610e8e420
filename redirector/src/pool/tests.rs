use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

fn members(weights: &[u32]) -> Vec<Member> {
    let name = |i: usize| stable_hash(&format!("backend-{i}"));
    weights.iter().enumerate().map(|(i, &weight)| Member { hash: name(i), weight, id: i as u16 + 1 }).collect()
}

fn counts(table: &[u16]) -> HashMap<u16, usize> {
    table.iter().fold(HashMap::new(), |mut counts, &id| {
        *counts.entry(id).or_default() += 1;
        counts
    })
}

/// Rows that changed although neither their old nor their new backend is `id`.
fn moved_beside(old: &[u16], new: &[u16], id: u16) -> usize {
    old.iter().zip(new).filter(|&(&old, &new)| old != new && old != id && new != id).count()
}

#[test]
fn sizes_double() {
    assert_eq!(rows(0), 1 << 10);
    assert_eq!(rows(4_096), 1 << 19);
    assert_eq!(rows(32_767), 1 << 19);
    assert!((1..=4_096).all(|backends| rows(backends) >= 100 * backends && rows(backends).is_power_of_two()));
}

#[test]
fn nobody_leaves_every_row_empty() {
    assert_eq!(build(&[], 1_024), vec![0; 1_024]);
    assert_eq!(build(&members(&[0, 0]), 1_024), vec![0; 1_024]);
}

#[test]
fn a_hash_never_changes() {
    assert_eq!(stable_hash("backend-1"), 923_879_737_690_348_396);
}

#[test]
fn equal_weights_differ_by_one_row_at_most() {
    for backends in [1, 2, 3, 10, 100, 655] {
        let counts = counts(&build(&members(&vec![7; backends]), rows(backends)));
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        assert!(most - least <= 1, "{backends}: {least} to {most}");
    }
}

#[test]
fn removal_moves_few_other_rows() {
    for backends in [2, 3, 10, 40, 160] {
        let all = members(&vec![1; backends]);
        let size = rows(backends);
        let old = build(&all, size);
        let mut worst = 0.0f64;
        for gone in (0..backends).step_by(backends.div_ceil(20)) {
            let mut rest = all.clone();
            let id = rest.remove(gone).id;
            worst = worst.max(moved_beside(&old, &build(&rest, size), id) as f64 / size as f64);
        }
        println!("{backends} backends, {size} rows: {:.2} % moved beside the removed one's", 100.0 * worst);
        assert!(worst < 0.04, "{backends}: {worst}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn shares_follow_weights(weights in prop::collection::vec(1u32..=1000, 1..200)) {
        let size = rows(weights.len());
        let counts = counts(&build(&members(&weights), size));
        prop_assert_eq!(counts.values().sum::<usize>(), size);
        let total: u32 = weights.iter().sum();
        let due: Vec<f64> = weights.iter().map(|&w| size as f64 * f64::from(w) / f64::from(total)).collect();
        for (i, due) in due.iter().enumerate() {
            let got = counts.get(&(i as u16 + 1)).copied().unwrap_or(0);
            prop_assert!(got >= 1);
            let slack = 2.0f64.max(0.02 * due);
            prop_assert!((got as f64 - due).abs() <= slack, "{got} rows, {due} due");
        }
    }

    #[test]
    fn order_does_not_matter(weights in prop::collection::vec(0u32..=1000, 1..50), turn in 0usize..50) {
        let ordered = members(&weights);
        let mut turned = ordered.clone();
        turned.rotate_left(turn % weights.len());
        turned.reverse();
        prop_assert_eq!(build(&ordered, 8_009), build(&turned, 8_009));
    }

    #[test]
    fn a_weighted_removal_moves_few_other_rows(weights in prop::collection::vec(1u32..=10, 2..60), pick: prop::sample::Index) {
        let all = members(&weights);
        let size = rows(weights.len());
        let mut rest = all.clone();
        let id = rest.remove(pick.index(weights.len())).id;
        let moved = moved_beside(&build(&all, size), &build(&rest, size), id);
        prop_assert!(moved * 100 <= size * 12, "{moved} of {size}");
    }
}
