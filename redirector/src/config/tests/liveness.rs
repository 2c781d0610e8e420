//! How often nodes beat, by which keys, and over which links.

use std::time::Duration;

use super::{SOUND, changed, differences, mistakes, sound};
use crate::config::{Beats, Config, parse};

const OLD: &str = "0f0e0d0c0b0a09080706050403020100";
const NEW: &str = "a1b2c3d4e5f60718293a4b5c6d7e8f90";

fn with(line: &str) -> Config {
    let text = changed("[cluster]\n", &format!("[cluster]\n{line}\n"));
    parse("beats.toml", &text).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// A further link of the other member.
fn linked(lines: &str) -> String {
    changed("[[member]]\nid = 1", "[[interface]]\nname = \"eth1\"\n[[member]]\nid = 1").replacen(
        "address = \"10.0.0.2\"\ninterface = \"eth0\"\n",
        &format!("address = \"10.0.0.2\"\ninterface = \"eth0\"\n[[member.link]]\n{lines}\n"),
        1,
    )
}

#[test]
fn beats_are_named_or_spelt_out() {
    let ms = Duration::from_millis;
    assert_eq!(sound().cluster.beats, Beats::STANDARD);
    for (text, interval, multiplier, shown) in [
        ("standard", ms(100), 3, "standard"),
        ("fast", ms(10), 3, "fast"),
        ("extreme", ms(3), 3, "extreme"),
        ("25ms x 4", ms(25), 4, "25ms x 4"),
        ("1ms x 2", ms(1), 2, "1ms x 2"),
        (" 10s  x  8 ", ms(10_000), 8, "10s x 8"),
        ("10ms x 3", ms(10), 3, "fast"),
    ] {
        let beats = with(&format!("beats = \"{text}\"")).cluster.beats;
        assert_eq!(beats, Beats { interval, multiplier }, "{text}");
        assert_eq!((beats.to_string().as_str(), beats.timeout()), (shown, interval * multiplier), "{text}");
        assert_eq!(with(&format!("beats = \"{beats}\"")).cluster.beats, beats, "what is shown can be written");
    }
}

#[test]
fn one_key_or_two_and_never_shown() {
    assert!(sound().cluster.beat_keys.is_empty());
    let config = with(&format!("beat_keys = [\"{OLD}\", \"{NEW}\"]"));
    let keys = &config.cluster.beat_keys;
    assert_eq!((keys.len(), keys[0].0[0], keys[1].0[15]), (2, 0x0f, 0x90), "in this order");
    assert!(keys.iter().all(|key| key.number() != 0) && keys[0].number() != keys[1].number());
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(shown.contains(&keys[1].to_string()) && !shown.contains("0f0e") && !shown.contains("a1b2"), "{shown}");
    assert_eq!(with(&format!("beat_keys = [\"{NEW}\"]")).cluster.beat_keys, keys[1..]);
}

/// Key numbers are made of the keys, in 255 ways: two that meet are told, since receivers could not tell them apart.
#[test]
fn keys_with_one_number_are_refused() {
    let number = with(&format!("beat_keys = [\"{OLD}\"]")).cluster.beat_keys[0].number();
    let twin = (1u32..)
        .map(|at| format!("{at:032x}"))
        .find(|key| with(&format!("beat_keys = [\"{key}\"]")).cluster.beat_keys[0].number() == number);
    let twin = twin.expect("one of a few hundred");
    let text = changed("[cluster]\n", &format!("[cluster]\nbeat_keys = [\"{OLD}\", \"{twin}\"]\n"));
    let [(field, words)] = &mistakes(&text)[..] else { panic!() };
    assert!(field == "cluster.beat_keys" && words.contains("same number") && words.contains("openssl"), "{words}");
}

#[test]
fn links_have_their_own_address_hop_and_vlan() {
    let config = parse("links.toml", &linked("address = \"10.9.0.2\"\ninterface = \"eth1\"\nvlan = 7")).unwrap();
    let [link] = &config.members[1].links[..] else { panic!("{:?}", config.members[1]) };
    assert_eq!((link.interface.as_str(), link.vlan, link.next_hop), ("eth1", 7, link.address));
    assert_eq!(link.address.to_string(), "10.9.0.2");
    assert!(config.members[0].links.is_empty());
    let routed = linked("address = \"2001:db8::2\"\ninterface = \"eth1\"\nnext_hop = \"2001:db8::ff\"");
    let config = parse("links.toml", &routed).unwrap();
    assert_eq!(config.members[1].links[0].next_hop.to_string(), "2001:db8::ff");
}

#[test]
fn each_mistake_is_told_once_at_its_place() {
    let beats = |line: &str| changed("[cluster]\n", &format!("[cluster]\n{line}\n"));
    let keys = |keys: &str| beats(&format!("beat_keys = {keys}"));
    for (text, field, words) in [
        (beats("beats = \"slow\""), "cluster.beats", "\"25ms x 4\""),
        (beats("beats = \"10ms\""), "cluster.beats", "says not how often"),
        (beats("beats = \"10 x 3\""), "cluster.beats", "says not how often"),
        (beats("beats = \"10ms x three\""), "cluster.beats", "says not how often"),
        (beats("beats = \"10ms x 1\""), "cluster.beats", "2 to 8"),
        (beats("beats = \"10ms x 9\""), "cluster.beats", "2 to 8"),
        (beats("beats = \"10ms x -3\""), "cluster.beats", "2 to 8"),
        (beats("beats = \"999us x 3\""), "cluster.beats", "1ms to 10s"),
        (beats("beats = \"11s x 3\""), "cluster.beats", "1ms to 10s"),
        (beats("beats = 10"), "cluster.beats", "expected text, found 10"),
        (keys("\"0f0e\""), "cluster.beat_keys", "one or two keys"),
        (keys("[\"0f0e\"]"), "cluster.beat_keys[0]", "4 hexadecimal digits instead of 32"),
        (keys(&format!("[\"{OLD}\", 5]")), "cluster.beat_keys[1]", "expected text"),
        (keys(&format!("[\"{OLD}\", \"{NEW}\", \"{OLD}\"]")), "cluster.beat_keys", "3 keys"),
        (keys(&format!("[\"{OLD}\", \"{OLD}\"]")), "cluster.beat_keys", "same number"),
        (linked("interface = \"eth1\""), "member[1].link[0].address", "is missing"),
        (linked("address = \"10.9.0.2\""), "member[1].link[0].interface", "is missing"),
        (linked("address = \"10.9.0\"\ninterface = \"eth1\""), "member[1].link[0].address", "not an IP address"),
        (
            linked("address = \"10.9.0.2\"\ninterface = \"eth7\""),
            "member[1].link[0].interface",
            "write one of eth0, eth1",
        ),
        (
            linked("address = \"10.9.0.2\"\ninterface = \"eth0\""),
            "member[1].link[0].interface",
            "eth0 is taken already",
        ),
        (linked("address = \"10.9.0.2\"\ninterface = \"eth1\"\nvlan = 4095"), "member[1].link[0].vlan", "0 to 4094"),
        (
            linked("address = \"10.9.0.2\"\ninterface = \"eth1\"\nforward = \"udp\""),
            "member[1].link[0].forward",
            "remove it; known here: address",
        ),
        (
            linked(
                "address = \"10.9.0.2\"\ninterface = \"eth1\"\n[[member.link]]\naddress = \"10.8.0.2\"\ninterface = \"eth1\"",
            ),
            "member[1].link[1].interface",
            "eth1 is taken already",
        ),
    ] {
        let found = mistakes(&text);
        let told = matches!(&found[..], [(at, said)] if at == field && said.contains(words));
        assert!(told, "expected {field}: {words}\nfound {found:#?}\n{text}");
    }
}

#[test]
fn differences_are_named() {
    let new = linked("address = \"10.9.0.2\"\ninterface = \"eth1\"")
        .replace("[cluster]\n", &format!("[cluster]\nbeats = \"fast\"\nbeat_keys = [\"{NEW}\"]\n"));
    let found = differences(SOUND, &new);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found.iter().any(|change| change == "~ cluster: beats standard -> fast"), "{found:#?}");
    assert!(found.iter().any(|change| change.contains("beat_keys") && change.contains("fingerprint ")), "{found:#?}");
    assert!(found.iter().any(|change| change.starts_with("~ member") && change.contains("link")), "{found:#?}");
    assert!(found.iter().any(|change| change == "+ interface eth1"), "{found:#?}");
    assert!(!found.concat().contains("a1b2"), "{found:#?}");
}
