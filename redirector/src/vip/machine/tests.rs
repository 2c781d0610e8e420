use std::net::Ipv4Addr;

use super::*;

mod cluster;

const ME: u8 = 2;
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const TIMING: Timing = Timing { probes: 3, answer: Duration::from_millis(10), damping: Duration::from_secs(1) };

fn nodes(ids: impl IntoIterator<Item = u8>) -> AliveNodes {
    let mut set = AliveNodes::default();
    ids.into_iter().for_each(|id| set.set(id, true));
    set
}

/// What node 2 of three sees: who is alive, and who is in node 3's eyes.
fn view(alive: &[u8], seen_by_3: &[u8]) -> View {
    View {
        members: [1, 2, 3].into(),
        alive: nodes(alive.iter().copied()),
        peers: [(3, nodes(seen_by_3.iter().copied()))].into(),
        unwilling: AliveNodes::default(),
        fitness: Fitness::Ready,
    }
}

/// Events of the table, for a VIP of node 1, then 2, then 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Everybody sees everybody.
    AllIn,
    /// Node 1 is suspect to nodes 2 and 3.
    Suspect,
    /// Node 1 is suspect to node 2 alone.
    SuspectToMe,
    /// Node 1 is alive and says that it drains.
    Unwilling,
    /// Nobody else is in sight.
    Alone,
    /// This node drains, and all are in.
    Drain,
    /// This node is unfit, and all are in.
    Unfit,
    /// Somebody else answers.
    Answer,
    /// Time is up.
    Due,
}

const EVENTS: [Event; 9] = [
    Event::AllIn,
    Event::Suspect,
    Event::SuspectToMe,
    Event::Unwilling,
    Event::Alone,
    Event::Drain,
    Event::Unfit,
    Event::Answer,
    Event::Due,
];

/// States by name; the times and numbers behind them have tests of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Off,
    Standby,
    Asking,
    Asked,
    Refused,
    Held,
    Yielding,
    YieldAsked,
}
use Named::*;

const STATES: [Named; 8] = [Off, Standby, Asking, Asked, Refused, Held, Yielding, YieldAsked];

fn named(state: State) -> Named {
    match state {
        State::Off => Off,
        State::Standby => Standby,
        State::Asking(0, _) => Asked,
        State::Asking(..) => Asking,
        State::Refused(..) => Refused,
        State::Held => Held,
        State::Yielding(3, _) => Yielding,
        State::Yielding(..) => YieldAsked,
    }
}

fn state(name: Named, at: Instant) -> State {
    match name {
        Off => State::Off,
        Standby => State::Standby,
        Asking => State::Asking(2, at),
        Asked => State::Asking(0, at),
        Refused => State::Refused(Turn::Mine, at),
        Held => State::Held,
        Yielding => State::Yielding(3, at),
        YieldAsked => State::Yielding(0, at),
    }
}

/// What each event does in [`STATES`], in their order, with the actions' initials. Before the event all members saw each
/// other.
const TABLE: [(Event, [(Named, &str); 8]); 9] = [
    (
        Event::AllIn,
        [
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Yielding, ""),
            (Yielding, ""),
            (YieldAsked, ""),
        ],
    ),
    (
        Event::Suspect,
        [(Asking, "P"), (Held, "HA"), (Asking, ""), (Asked, ""), (Asking, "P"), (Held, ""), (Held, ""), (Held, "")],
    ),
    (
        Event::SuspectToMe,
        [
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Standby, ""),
            (Yielding, ""),
            (Yielding, ""),
            (YieldAsked, ""),
        ],
    ),
    (
        Event::Unwilling,
        [(Asking, "P"), (Held, "HA"), (Asking, ""), (Asked, ""), (Asking, "P"), (Held, ""), (Held, ""), (Held, "")],
    ),
    (
        Event::Alone,
        [(Asking, "P"), (Asking, "P"), (Asking, ""), (Asked, ""), (Asking, "P"), (Held, ""), (Held, ""), (Held, "")],
    ),
    (
        Event::Drain,
        [(Off, ""), (Off, ""), (Off, ""), (Off, ""), (Off, ""), (YieldAsked, "P"), (YieldAsked, "P"), (YieldAsked, "")],
    ),
    (Event::Unfit, [(Off, ""), (Off, ""), (Off, ""), (Off, ""), (Off, ""), (Off, "R"), (Off, "R"), (Off, "R")]),
    (
        Event::Answer,
        [
            (Off, ""),
            (Standby, ""),
            (Refused, ""),
            (Refused, ""),
            (Refused, ""),
            (Held, ""),
            (Yielding, ""),
            (Standby, "R"),
        ],
    ),
    // All are in, so that what waits to take the VIP asks again.
    (
        Event::Due,
        [
            (Off, ""),
            (Standby, ""),
            (Asking, "P"),
            (Held, "HA"),
            (Asking, "P"),
            (Held, ""),
            (YieldAsked, "P"),
            (Yielding, ""),
        ],
    ),
];

fn initials(actions: &[Action]) -> String {
    let initial = |action: &Action| match action {
        Action::Hold(_) => 'H',
        Action::Release(_) => 'R',
        Action::Probe(_) => 'P',
        Action::Announce(_) => 'A',
    };
    actions.iter().map(initial).collect()
}

fn machine(name: Named, now: Instant) -> Machine {
    let plan = Plan::from([(VIP, vec![1, ME, 3])]);
    let mut machine = Machine::new(ME, TIMING, &plan, &BTreeSet::new());
    machine.view = view(&[1, 2, 3], &[1, 2, 3]);
    machine.vips.insert(VIP, (vec![1, ME, 3], state(name, now)));
    machine
}

#[test]
fn every_state_meets_every_event() {
    let now = Instant::now();
    for (event, expected) in TABLE {
        for (before, (after, actions)) in STATES.into_iter().zip(expected) {
            let mut machine = machine(before, now);
            let done = match event {
                Event::AllIn => machine.handle_view(view(&[1, 2, 3], &[1, 2, 3]), now),
                Event::Suspect => machine.handle_view(view(&[2, 3], &[2, 3]), now),
                Event::SuspectToMe => machine.handle_view(view(&[2, 3], &[1, 2, 3]), now),
                Event::Unwilling => {
                    machine.handle_view(View { unwilling: nodes([1]), ..view(&[1, 2, 3], &[1, 2, 3]) }, now)
                }
                Event::Alone => machine.handle_view(view(&[2], &[1, 2, 3]), now),
                Event::Drain => {
                    machine.handle_view(View { fitness: Fitness::Draining, ..view(&[1, 2, 3], &[1, 2, 3]) }, now)
                }
                Event::Unfit => {
                    machine.handle_view(View { fitness: Fitness::Unfit, ..view(&[1, 2, 3], &[1, 2, 3]) }, now)
                }
                Event::Answer => machine.handle_answer(VIP, now),
                Event::Due => machine.handle_time(now),
            };
            let found = (named(machine.vips[&VIP].1), initials(&done));
            assert_eq!(found, (after, actions.to_owned()), "{before:?} on {event:?}");
        }
    }
    assert!(EVENTS.iter().all(|event| TABLE.iter().any(|(listed, _)| listed == event)));
}

/// Lets time pass until something is done.
fn wait(machine: &mut Machine, now: &mut Instant) -> String {
    *now = machine.due().expect("something is awaited");
    initials(&machine.handle_time(*now))
}

#[test]
fn without_a_majority_three_probes_must_stay_unanswered() {
    let mut now = Instant::now();
    let mut machine = machine(Standby, now);
    let begin = now;
    assert_eq!(initials(&machine.handle_view(view(&[2], &[]), now)), "P");
    assert_eq!([(); 3].map(|()| wait(&mut machine, &mut now)), ["P", "P", "HA"]);
    assert_eq!(now - begin, 3 * TIMING.answer);
}

#[test]
fn without_a_majority_a_vip_that_answers_is_left_alone() {
    let mut now = Instant::now();
    let mut machine = machine(Standby, now);
    machine.handle_view(view(&[2], &[]), now);
    for _ in 0..3 {
        assert_eq!(initials(&machine.handle_answer(VIP, now)), "");
        assert_eq!(wait(&mut machine, &mut now), "P", "asked again after a while");
    }
}

#[test]
fn the_better_ranked_takes_back_after_damping() {
    let mut now = Instant::now();
    let plan = Plan::from([(VIP, vec![ME, 1, 3])]);
    let mut machine = Machine::new(ME, TIMING, &plan, &BTreeSet::new());
    assert_eq!(initials(&machine.handle_view(view(&[1, 2, 3], &[1, 2, 3]), now)), "P");
    machine.handle_answer(VIP, now);
    let begin = now;
    assert_eq!(wait(&mut machine, &mut now), "HA");
    assert_eq!(now - begin, TIMING.damping);
}

#[test]
fn a_majority_that_comes_into_sight_does_not_shorten_the_damping() {
    let mut now = Instant::now();
    let plan = Plan::from([(VIP, vec![ME, 1, 3])]);
    let mut machine = Machine::new(ME, TIMING, &plan, &BTreeSet::new());
    assert_eq!(initials(&machine.handle_view(view(&[2], &[]), now)), "P");
    machine.handle_answer(VIP, now);
    let begin = now;
    assert_eq!(initials(&machine.handle_view(view(&[1, 2, 3], &[1, 2, 3]), now)), "");
    assert_eq!(wait(&mut machine, &mut now), "P", "it was refused when it could not know better");
    machine.handle_answer(VIP, now);
    assert_eq!(wait(&mut machine, &mut now), "HA");
    assert!(now - begin >= TIMING.damping);
}

#[test]
fn a_new_plan_s_holder_waits_as_one_that_returns() {
    let mut now = Instant::now();
    let mut machine = machine(Standby, now);
    assert_eq!(initials(&machine.handle_plan(&Plan::from([(VIP, vec![ME, 1, 3])]), now)), "P");
    machine.handle_answer(VIP, now);
    let begin = now;
    assert_eq!(wait(&mut machine, &mut now), "HA");
    assert_eq!(now - begin, TIMING.damping);
}

#[test]
fn the_other_holds_on_until_the_better_ranked_answers() {
    let mut now = Instant::now();
    let mut machine = machine(Held, now);
    machine.handle_view(view(&[1, 2, 3], &[1, 2, 3]), now);
    let begin = now;
    assert_eq!(wait(&mut machine, &mut now), "P");
    assert_eq!(now - begin, 2 * TIMING.damping);
    assert_eq!([(); 3].map(|()| wait(&mut machine, &mut now)), ["P", "P", ""]);
    assert!(machine.vips[&VIP].1.holds(), "nobody answers");
    assert_eq!(wait(&mut machine, &mut now), "P");
    assert_eq!(initials(&machine.handle_answer(VIP, now)), "R");
}

#[test]
fn a_drained_node_lets_go_when_its_successor_answers_or_time_is_up() {
    let begin = Instant::now();
    let drained = View { fitness: Fitness::Draining, ..view(&[1, 2, 3], &[1, 2, 3]) };
    let mut machine = machine(Held, begin);
    assert_eq!(initials(&machine.handle_view(drained.clone(), begin)), "P");
    assert_eq!(initials(&machine.handle_answer(VIP, begin)), "R");

    let mut machine = self::machine(Held, begin);
    let mut now = begin;
    machine.handle_view(drained, now);
    let last = std::iter::from_fn(|| machine.due().map(|_| wait(&mut machine, &mut now))).last();
    assert_eq!(last.as_deref(), Some("R"));
    assert!(now - begin >= TIMING.damping && now - begin < 2 * TIMING.damping);
}

#[test]
fn a_holder_announces_again_when_somebody_returns() {
    let now = Instant::now();
    let mut machine = machine(Held, now);
    machine.handle_view(view(&[2], &[]), now);
    assert_eq!(initials(&machine.handle_view(view(&[2, 3], &[2, 3]), now)), "A");
}

#[test]
fn a_new_plan_moves_what_it_names_and_drops_the_rest() {
    let now = Instant::now();
    let mut machine = machine(Held, now);
    machine.handle_view(view(&[2, 3], &[2, 3]), now);
    let other = IpAddr::from([192, 0, 2, 2]);
    assert_eq!(initials(&machine.handle_plan(&Plan::from([(VIP, vec![3, ME]), (other, vec![ME])]), now)), "P");
    assert_eq!(machine.states().map(|(_, state)| named(state)).collect::<Vec<_>>(), [Yielding, Asking]);
    assert_eq!(initials(&machine.handle_plan(&Plan::new(), now)), "R");
}

#[test]
fn what_was_held_before_the_start_is_held_on() {
    let now = Instant::now();
    let plan = Plan::from([(VIP, vec![1, ME])]);
    let mut machine = Machine::new(ME, TIMING, &plan, &[VIP].into());
    assert_eq!(initials(&machine.handle_view(view(&[2, 3], &[2, 3]), now)), "A");
    assert!(machine.vips[&VIP].1.holds());
}
