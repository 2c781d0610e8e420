//! What the BPF object holds and what its programs cost, held against `xtask/budget.toml`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::{env, fs};

use aya::Ebpf;
use aya::programs::{Program, Xdp};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind};
use serde::Deserialize;

/// More than this Linux 6.1 refuses; newer kernels round frames less.
const STACK_LIMIT: u64 = 512;

const BUDGET: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/xtask/budget.toml");

/// What a program may cost, or does.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    stack_bytes: u64,
    verified_instructions: u32,
}

#[test]
fn nothing_can_panic() {
    let object = object::File::parse(redirector::OBJECT).expect("the object is ELF");
    let is_panic = |name: &&str| name.contains("panic") || name.contains("rust_begin_unwind");
    let panics: Vec<&str> = object.symbols().filter_map(|symbol| symbol.name().ok()).filter(is_panic).collect();
    assert!(panics.is_empty(), "a check in the programs was not optimised out, or an index not proven: {panics:#?}");
}

#[test]
fn every_program_keeps_its_budget() {
    assert!(xtask::step::is_root(), "loading BPF programs needs root: run `cargo xtask test` as root");
    let costs = costs();
    for (name, cost) in &costs {
        println!("{name}: {} bytes of stack, {} instructions verified", cost.stack_bytes, cost.verified_instructions);
    }
    let deep: Vec<_> = costs.iter().filter(|(_, cost)| cost.stack_bytes > STACK_LIMIT).map(|(name, _)| name).collect();
    assert!(deep.is_empty(), "over {STACK_LIMIT} bytes of stack, which Linux 6.1 refuses: {deep:?}");
    if env::var_os("REDIRECTOR_RECORD_BUDGET").is_some() {
        fs::write(BUDGET, record(&costs)).expect("write the budget");
        return;
    }
    let budget = fs::read_to_string(BUDGET).expect("read the budget");
    let budget: BTreeMap<String, Cost> = toml::from_str(&budget).expect("the budget is well formed");
    let names = |costs: &BTreeMap<String, Cost>| costs.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&costs), names(&budget), "the programs differ from the budget's: `cargo xtask test --record`");
    for (name, Cost { stack_bytes, verified_instructions }) in costs {
        let allowed = &budget[&name];
        assert!(
            stack_bytes <= allowed.stack_bytes && verified_instructions <= allowed.verified_instructions,
            "{name} uses {stack_bytes} bytes of stack and {verified_instructions} verified instructions, but may use \
             {allowed:?}; if it must: `cargo xtask test --record`"
        );
    }
}

/// The budget that these costs just keep. Kernels count a little differently, so there is an eighth to spare.
fn record(costs: &BTreeMap<String, Cost>) -> String {
    let mut text = String::from("# What each BPF program may cost; written by `cargo xtask test --record`.\n");
    for (name, Cost { stack_bytes, verified_instructions }) in costs {
        let verified_instructions = (verified_instructions + verified_instructions / 8).next_multiple_of(100);
        write!(text, "\n[{name}]\nstack_bytes = {stack_bytes}\nverified_instructions = {verified_instructions}\n")
            .expect("a string takes any text");
    }
    text
}

fn costs() -> BTreeMap<String, Cost> {
    let code = Code::of(redirector::OBJECT);
    let mut loaded = Ebpf::load(redirector::OBJECT).unwrap_or_else(|error| panic!("load: {error:?}"));
    let cost = |(name, program): (&str, &mut Program)| {
        let program: &mut Xdp = program.try_into().unwrap_or_else(|error| panic!("{name} is not XDP: {error}"));
        program.load().unwrap_or_else(|error| panic!("load {name}: {error}"));
        let info = program.info().unwrap_or_else(|error| panic!("ask about {name}: {error}"));
        let verified_instructions = info.verified_instruction_count().expect("this kernel counts what it verifies");
        (name.to_owned(), Cost { stack_bytes: code.stack(name), verified_instructions })
    };
    loaded.programs_mut().map(cost).collect()
}

/// The functions of the object, by the place of their first instruction.
struct Code {
    functions: HashMap<Place, Function>,
    entries: HashMap<String, Place>,
}

type Place = (SectionIndex, u64);

#[derive(Default)]
struct Function {
    /// Bytes below the frame pointer that it touches.
    frame: u64,
    calls: Vec<Place>,
}

impl Code {
    fn of(image: &[u8]) -> Self {
        let file = object::File::parse(image).expect("the object is ELF");
        let mut code = Self { functions: HashMap::new(), entries: HashMap::new() };
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
            let index = symbol.section_index().expect("a function is in a section");
            let section = file.section_by_index(index).expect("the section is there");
            let bytes = section.data_range(symbol.address(), symbol.size()).expect("read").expect("within the section");
            let referred: HashMap<u64, Place> = section
                .relocations()
                .filter_map(|(offset, relocation)| {
                    let RelocationTarget::Symbol(target) = relocation.target() else { return None };
                    let target = file.symbol_by_index(target).ok()?;
                    let is_section = target.kind() == SymbolKind::Section;
                    let addend = if is_section { addend(section.data().ok()?, offset) } else { 0 };
                    Some((offset, (target.section_index()?, target.address().wrapping_add_signed(addend))))
                })
                .collect();
            let place = (index, symbol.address());
            code.functions.insert(place, Function::of(bytes, place, &referred));
            code.entries.insert(symbol.name().expect("a function has a name").to_owned(), place);
        }
        code
    }

    /// The stack of a program: the frames of its deepest chain of calls, each rounded up as Linux 6.1 does.
    fn stack(&self, program: &str) -> u64 {
        self.depth(self.entries[program])
    }

    fn depth(&self, place: Place) -> u64 {
        // A reference to anything but code is none to a function.
        let Some(function) = self.functions.get(&place) else { return 0 };
        let below = function.calls.iter().map(|&callee| self.depth(callee)).max().unwrap_or(0);
        function.frame.max(1).next_multiple_of(32) + below
    }
}

impl Function {
    fn of(bytes: &[u8], (section, start): Place, referred: &HashMap<u64, Place>) -> Self {
        const FRAME_POINTER: u8 = 10;
        let mut function = Self::default();
        // Whether a register was last set to the frame pointer itself, to have an offset added next.
        let mut copies = [false; 16];
        for (index, instruction) in bytes.chunks_exact(8).enumerate() {
            let at = start + index as u64 * 8;
            let (code, target, source) = (instruction[0], instruction[1] & 15, instruction[1] >> 4);
            let offset = i16::from_le_bytes([instruction[2], instruction[3]]).into();
            let value = i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]).into();
            let copied = std::mem::take(&mut copies[usize::from(target)]);
            let touched: i64 = match (code, code & 7) {
                (_, 1) if source == FRAME_POINTER => offset,
                (_, 2 | 3) if target == FRAME_POINTER => offset,
                (ADD_IMMEDIATE, _) if copied => value,
                _ => 0,
            };
            function.frame = function.frame.max(touched.min(0).unsigned_abs());
            copies[usize::from(target)] = code == MOVE && source == FRAME_POINTER;
            match referred.get(&at) {
                // Also the address of a callback, which runs on top of the caller's frame.
                Some(&callee) if code == CALL || code == LOAD_ADDRESS => function.calls.push(callee),
                None if code == CALL && source == CALL_LOCAL => {
                    function.calls.push((section, at.wrapping_add_signed((value + 1) * 8)));
                }
                _ => (),
            }
        }
        function
    }
}

const ADD_IMMEDIATE: u8 = 0x07;
const LOAD_ADDRESS: u8 = 0x18;
const CALL: u8 = 0x85;
const MOVE: u8 = 0xbf;
/// In a call's source register: the callee is a function of ours, not a helper.
const CALL_LOCAL: u8 = 1;

/// The distance from the start of its section at which an instruction refers to a function.
fn addend(section: &[u8], offset: u64) -> i64 {
    let at = usize::try_from(offset).expect("an offset fits") + 4;
    let value = section.get(at..at + 4).map_or(0, |bytes| i32::from_le_bytes(bytes.try_into().expect("four bytes")));
    // Calls count instructions from the next one, addresses count bytes.
    if section[at - 4] == CALL { i64::from(value + 1) * 8 } else { value.into() }
}
