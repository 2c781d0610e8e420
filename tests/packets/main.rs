//! Packet cases: what goes in, what the tables say, and what must come out, judged by a decoder that is not ours.

mod beats;
mod carriage;
mod decapsulation;
mod fragments;
mod icmp;
mod legs;
mod malformed;
mod neighbours;
mod nodes;
mod owners;
mod protocols;
mod refusals;
mod services;
mod signals;
mod suspects;
mod vips;

use redirector::dataplane::memory::MemoryTables;
use redirector_ebpf::reason::{Action, Reason};
use suite::decode::{Seen, decode};
use suite::node::{self, Done};
use suite::packet::Packet;

/// One packet through one fresh node of the standard cluster.
struct Case {
    says: &'static str,
    input: Vec<u8>,
    tables: MemoryTables,
}

fn case(says: &'static str, input: &Packet) -> Case {
    case_of(says, input.bytes())
}

fn case_of(says: &'static str, input: Vec<u8>) -> Case {
    Case { says, input, tables: node::node(1) }
}

impl Case {
    /// Bends the node's tables.
    fn with(mut self, bend: impl FnOnce(&mut MemoryTables)) -> Self {
        bend(&mut self.tables);
        self
    }

    /// The packet ends with this reason, which passes or drops it, and with these notes.
    fn ends(self, reason: Reason, notes: &[Reason]) {
        let done = self.done(reason, notes);
        match reason.action() {
            Action::Pass => assert_eq!(done.bytes, self.input, "{}: passed, but touched", self.says),
            Action::Drop => {}
            _ => panic!("{}: `{}` sends; say what", self.says, reason.name()),
        }
    }

    /// The packet is sent for this reason by this port, with these notes; `judge` gets it decoded.
    fn leaves(self, reason: Reason, port: u8, notes: &[Reason], judge: impl FnOnce(&Seen)) {
        let done = self.done(reason, notes);
        assert_eq!(done.verdict.port, port, "{}: the port", self.says);
        println!("{}", self.says);
        judge(&decode(&done.bytes));
    }

    fn done(&self, reason: Reason, notes: &[Reason]) -> Done {
        let done = node::send(&self.tables, &self.input);
        assert_eq!(done.verdict.reason, reason, "{}: {:#?}", self.says, done.journey);
        assert_eq!(done.notes, notes, "{}: what is counted besides", self.says);
        done
    }
}

/// Each row of every pool names this backend.
fn only(name: &'static str) -> impl Fn(&mut MemoryTables) {
    use redirector_ebpf::tables::Row;
    move |tables| {
        let id = node::backend(tables, name);
        node::set_rows(tables, name.split('/').next().expect("pool/backend"), Row::new(id, id, false));
    }
}

/// Every slot names these nodes by rank.
fn ranks(ranks: [u8; 4]) -> impl Fn(&mut MemoryTables) {
    move |tables| tables.image.slots.iter_mut().for_each(|slot| slot.ranks = ranks)
}
