//! Several machines together, under cuts and changes of fitness.

use proptest::prelude::*;

use super::*;
use crate::vip::plan::plan;

/// Several machines on one segment. A cut separates parts that neither hear each other's beats nor answer probes.
struct Cluster {
    machines: Vec<Machine>,
    part: Vec<u8>,
    fitness: Vec<Fitness>,
    now: Instant,
    /// Views that a node has not taken note of yet.
    stale: BTreeSet<usize>,
}

const STEP: Duration = Duration::from_millis(5);

impl Cluster {
    fn new(count: u8, vips: u8) -> Self {
        let members: Vec<(u8, u32)> = (1..=count).map(|id| (id, 1)).collect();
        let plan = plan((1..=vips).map(|last| IpAddr::from([192, 0, 2, last])), &members);
        let machine = |id| Machine::new(id, TIMING, &plan, &BTreeSet::new());
        let count = usize::from(count);
        Self {
            machines: (1..=count as u8).map(machine).collect(),
            part: vec![0; count],
            fitness: vec![Fitness::Ready; count],
            now: Instant::now(),
            stale: (0..count).collect(),
        }
    }

    fn sees(&self, node: usize) -> AliveNodes {
        nodes((0..self.part.len()).filter(|other| self.part[*other] == self.part[node]).map(|other| other as u8 + 1))
    }

    fn view(&self, node: usize) -> View {
        let alive = self.sees(node);
        let near = |other: &usize| *other != node && alive.is_alive(*other as u8 + 1);
        View {
            members: (1..=self.part.len() as u8).collect(),
            alive,
            peers: (0..self.part.len()).filter(near).map(|other| (other as u8 + 1, self.sees(other))).collect(),
            unwilling: nodes(
                (0..self.part.len())
                    .filter(|other| near(other) && self.fitness[*other] != Fitness::Ready)
                    .map(|other| other as u8 + 1),
            ),
            fitness: self.fitness[node],
        }
    }

    fn holds(&self, node: usize, vip: IpAddr) -> bool {
        self.machines[node].vips[&vip].1.holds()
    }

    /// Probes are answered within the step by whoever holds the VIP in the same part.
    fn act(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            let Action::Probe(vip) = action else { continue };
            let answers = |other: usize| other != node && self.part[other] == self.part[node] && self.holds(other, vip);
            if (0..self.machines.len()).any(answers) {
                let done = self.machines[node].handle_answer(vip, self.now);
                assert!(done.iter().all(|action| !matches!(action, Action::Probe(_))));
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        for node in 0..self.machines.len() {
            if self.stale.remove(&node) {
                let view = self.view(node);
                let actions = self.machines[node].handle_view(view, self.now);
                self.act(node, actions);
            }
            let actions = self.machines[node].handle_time(self.now);
            self.act(node, actions);
        }
    }

    /// Lets time pass; says for how long at the longest some part with a fit node had nobody to hold some VIP.
    fn pass(&mut self, time: Duration) -> Duration {
        let (end, mut longest) = (self.now + time, Duration::ZERO);
        let mut since: BTreeMap<(u8, IpAddr), Instant> = BTreeMap::new();
        while self.now < end {
            self.step();
            for (part, vip) in self.uneven(|holders| holders == 0) {
                let begin = *since.entry((part, vip)).or_insert(self.now);
                longest = longest.max(self.now - begin);
            }
            let lonely = self.uneven(|holders| holders == 0);
            since.retain(|key, _| lonely.contains(key));
        }
        longest
    }

    /// Parts with a fit node and VIPs whose number of holders there is as told.
    fn uneven(&self, told: impl Fn(usize) -> bool) -> BTreeSet<(u8, IpAddr)> {
        let fit = |node: &usize| self.fitness[*node] == Fitness::Ready;
        let parts: BTreeSet<u8> = (0..self.part.len()).filter(fit).map(|node| self.part[node]).collect();
        let vips: Vec<IpAddr> = self.machines[0].vips.keys().copied().collect();
        let holders = |part: u8, vip: IpAddr| {
            (0..self.part.len()).filter(|node| self.part[*node] == part && self.holds(*node, vip)).count()
        };
        let pairs = parts.into_iter().flat_map(|part| vips.iter().map(move |vip| (part, *vip)));
        pairs.filter(|(part, vip)| told(holders(*part, *vip))).collect()
    }
}

/// A cut into parts, or a node's change of fitness.
#[derive(Clone, Debug)]
enum Change {
    Cut(Vec<u8>),
    Fitness(usize, Fitness),
}

fn changes() -> impl Strategy<Value = Change> {
    let fitness = prop_oneof![Just(Fitness::Ready), Just(Fitness::Draining), Just(Fitness::Unfit)];
    prop_oneof![
        3 => prop::collection::vec(0u8..3, 5).prop_map(Change::Cut),
        1 => (0usize..5, fitness).prop_map(|(node, fitness)| Change::Fitness(node, fitness)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn each_part_of_a_cut_has_a_holder_and_a_healed_cluster_one(
        count in 1usize..=5, story in prop::collection::vec((changes(), 1u64..4_000), 0..8)
    ) {
        let mut cluster = Cluster::new(count as u8, 4);
        // Views are new within a step, and a VIP is asked for in vain, perhaps just when its holder lets go of it.
        let patience = 2 * u32::from(TIMING.probes) * (TIMING.answer + STEP) + AGAIN * TIMING.answer;
        cluster.pass(3 * TIMING.damping);
        for (change, millis) in story {
            match change {
                Change::Cut(parts) => cluster.part = parts[..count].to_vec(),
                Change::Fitness(node, fitness) => cluster.fitness[node % count] = fitness,
            }
            cluster.stale = (0..count).collect();
            let lonely = cluster.pass(Duration::from_millis(millis));
            prop_assert!(lonely <= patience, "nobody held a VIP for {lonely:?}");
        }
        cluster.part = vec![0; count];
        cluster.fitness = vec![Fitness::Ready; count];
        cluster.stale = (0..count).collect();
        cluster.pass(6 * TIMING.damping);
        prop_assert_eq!(cluster.uneven(|holders| holders != 1), BTreeSet::new());
        for (vip, (ranks, _)) in &cluster.machines[0].vips {
            prop_assert!(cluster.holds(usize::from(ranks[0]) - 1, *vip), "{vip} is not with the first of its list");
        }
    }
}
