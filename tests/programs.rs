//! Every BPF program passes the verifier and runs. Also run on the oldest kernel promised: `cargo xtask test --kernel`.

use aya::Ebpf;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use etherparse::PacketBuilder;

/// `XDP_DROP` to `XDP_REDIRECT`; `XDP_ABORTED` is 0, and no valid packet ends there.
const VERDICTS: std::ops::RangeInclusive<u32> = 1..=4;

#[test]
fn every_program_loads_and_runs() {
    assert!(xtask::step::is_root(), "loading BPF programs needs root: run `cargo xtask test` as root");
    let mut object = Ebpf::load(redirector::OBJECT).unwrap_or_else(|error| panic!("load the object: {error:?}"));
    let names: Vec<String> = object.programs().map(|(name, _)| name.to_owned()).collect();
    assert!(!names.is_empty(), "the object has no programs");
    let packet = datagram();
    for name in names {
        let program = object.program_mut(&name).expect("it was listed");
        let program: &mut Xdp = program.try_into().unwrap_or_else(|error| panic!("{name} is not XDP: {error}"));
        program.load().unwrap_or_else(|error| panic!("load {name}: {error}"));
        let mut output = [0; 512];
        let options =
            TestRunOptions { data_in: Some(&packet), data_out: Some(&mut output), repeat: 1, ..Default::default() };
        let result = program.test_run(options).unwrap_or_else(|error| panic!("run {name}: {error:?}"));
        println!("{name}: verdict {}", result.return_value);
        assert!(VERDICTS.contains(&result.return_value), "{name} returned {}", result.return_value);
    }
}

fn datagram() -> Vec<u8> {
    let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(theirs, ours)
        .ipv4([192, 0, 2, 1], [198, 51, 100, 1], 64)
        .udp(40_000, 53)
        .write(&mut packet, b"anyone there?")
        .expect("a vector takes any packet");
    packet
}
