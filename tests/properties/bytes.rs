//! The fuzz targets over random and damaged bytes; `redirector-ebpf/fuzz` runs them without end.

use suite::fuzz;
use suite::neighbour::{solicitation, source_option, who_has};
use suite::packet::Extension::{Authentication, Destination, HopByHop};
use suite::packet::{ROUTER, echo, tcp, too_big, udp};
use suite::random::Random;

/// Well-formed frames to start from.
fn seeds() -> Vec<Vec<u8>> {
    let v4 = tcp("192.0.2.7:40000", "198.51.100.1:443");
    let v6 = tcp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:443");
    let vip6 = "2001:db8:100::1".parse().expect("an address");
    let mut seeds = vec![
        v4.bytes(),
        v4.clone().tags(&[1, 2]).options(40).bytes(),
        v6.bytes(),
        v6.clone().extensions(&[HopByHop, Destination(3), Authentication]).bytes(),
        udp("192.0.2.7:40000", "198.51.100.1:5060").bytes(),
        udp("10.3.0.3:40000", "10.0.0.1:4199").bytes(),
        echo("192.0.2.7", "198.51.100.3", 7).bytes(),
        echo("2001:db8:7::7", "2001:db8:100::1", 7).bytes(),
        too_big("203.0.113.1", &v4.answer()).bytes(),
        too_big("2001:db8:66::1", &v6.answer()).bytes(),
        who_has([198, 51, 100, 1].into(), (ROUTER, [192, 0, 2, 7].into())),
        solicitation(vip6, ROUTER, "fe80::7".parse().expect("an address"), &source_option(ROUTER)).bytes(),
    ];
    seeds.extend(udp("192.0.2.7:40000", "198.51.100.1:5060").sized(600).fragments(9, 200));
    seeds.extend(udp("[2001:db8:7::7]:40000", "[2001:db8:100::1]:5060").sized(600).fragments(9, 200));
    seeds
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    for _ in 0..random.below(6) {
        let at = random.below(frame.len());
        frame[at] = random.number() as u8;
    }
    if random.once_in(4) {
        frame.truncate(random.below(frame.len()) + 1);
    }
}

#[test]
fn no_bytes_upset_the_targets() {
    let (seeds, mut random) = (seeds(), Random::new(3));
    for round in 0..200_000 {
        let mut frame = if random.once_in(8) {
            let len = random.below(200) + 1;
            random.bytes(len)
        } else {
            seeds[random.below(seeds.len())].clone()
        };
        damage(&mut random, &mut frame);
        fuzz::parser(&frame);
        if round % 4 == 0 {
            fuzz::decision(&frame);
        }
    }
}
