use std::{fs, time::Duration};

use proptest::prelude::*;

use super::*;

mod cases;
mod liveness;

const EXAMPLE: &str = include_str!("../../example.toml");

/// A sound configuration with one of everything that the cases below break.
const SOUND: &str = r#"
[node]
id = 1
[cluster]
key = "000102030405060708090a0b0c0d0e0f"
[[interface]]
name = "eth0"
[[member]]
id = 1
address = "10.0.0.1"
interface = "eth0"
[[member]]
id = 2
address = "10.0.0.2"
interface = "eth0"
[[vip]]
address = "10.1.0.1"
[[vip]]
address = "2001:db8::1"
[[service]]
name = "web"
vip = "10.1.0.1"
protocol = "tcp"
ports = [80, "8000-8010"]
pool = "plain"
[[service]]
name = "web6"
vip = "2001:db8::1"
protocol = "tcp"
ports = 80
pool = "tunnel"
[[service]]
name = "ping"
vip = "10.1.0.1"
protocol = "icmp"
pool = "plain"
[[pool]]
name = "plain"
mode = "l2"
[[pool.backend]]
name = "b1"
address = "10.2.0.1"
[[pool.backend.path]]
interface = "eth0"
[[pool]]
name = "tunnel"
mode = "ipip"
settle = "10s"
[[pool.backend]]
name = "t1"
address = "10.2.0.9"
weight = 5
[[pool.backend.path]]
interface = "eth0"
source = "10.3.0.0/24"
"#;

fn sound() -> Config {
    parse("sound.toml", SOUND).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn changed(from: &str, to: &str) -> String {
    assert!(SOUND.contains(from), "{from:?} is not in the text");
    SOUND.replacen(from, to, 1)
}

fn mistakes(text: &str) -> Vec<(String, String)> {
    let mistakes = parse("broken.toml", text).expect_err(text);
    mistakes.list().iter().map(|m| (m.field.clone(), format!("{}; {}", m.message, m.mend))).collect()
}

#[test]
fn the_example_is_sound() {
    let config = parse("example.toml", EXAMPLE).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(config.services[0].ports.len(), 3);
    assert_eq!(config.pools[0].backends[0].paths[1].vlan, 12);
    assert_eq!(config.decap, Some(parse_decap("example.toml", EXAMPLE).unwrap()));
}

/// The example claims to show defaults: taking those lines away must change nothing.
#[test]
fn the_example_shows_defaults() {
    let config = parse("example.toml", EXAMPLE).unwrap();
    assert_eq!(config.tables, Tables::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.replication, Replication::default());
    assert_eq!(config.cluster.port, sound().cluster.port);
    assert_eq!(config.cluster.down_after, sound().cluster.down_after);
}

#[test]
fn another_nodes_file_changes_what_all_have_in_common() {
    let own = sound();
    let other = changed("id = 1\n[cluster]\nkey =", "id = 2\n[cluster]\nslots = 1000\nkey_file = \"elsewhere\"\nno =")
        .replacen("[[interface]]\nname = \"eth0\"", "[[interface]]\nname = \"eth7\"", 1)
        .replacen("name = \"b1\"", "name = \"b9\"", 1);
    assert!(parse("other.toml", &other).is_err());
    let merged = merge("other.toml", &other, &own).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!((&merged.node, &merged.cluster, &merged.interfaces), (&own.node, &own.cluster, &own.interfaces));
    assert_eq!(merged.pools[0].backends[0].name, "b9");
    let unknown = other.replacen("interface = \"eth0\"", "interface = \"eth7\"", 1);
    let mistakes = merge("other.toml", &unknown, &own).expect_err("this node has no such interface");
    assert_eq!(mistakes.list().len(), 1, "{mistakes}");
    assert!(merge("other.toml", &format!("{other}\n[[servise]]"), &own).is_err());
}

#[test]
fn defaults_fill_what_is_left_out() {
    let config = sound();
    assert_eq!(config.node.pins.to_str(), Some("/sys/fs/bpf/redirector"));
    assert_eq!(config.interfaces[0].mode, XdpMode::Auto);
    assert_eq!(config.members[1].next_hop, config.members[1].address);
    assert_eq!(config.services[2].ports, [PortRange::ANY]);
    assert_eq!(config.pools[0].settle, Duration::from_secs(60));
    let backend = &config.pools[1].backends[0];
    assert_eq!((backend.paths[0].remote, backend.paths[0].next_hop), (backend.address, backend.address));
}

#[test]
fn sizes_are_rounded_up() {
    let config =
        parse("sizes.toml", &changed("[[vip]]", "[tables]\nflows4 = 5000\nbackends = 20000\n[[vip]]")).unwrap();
    assert_eq!((config.tables.flows4, config.tables.backends), (8192, 32_768));
}

#[test]
fn any_family_of_next_hop_and_payload_will_do() {
    let l2 = changed("pool = \"tunnel\"", "pool = \"plain\"");
    assert!(parse("l2.toml", &l2).is_ok());
}

#[test]
fn more_backends_than_places_are_refused() {
    let mut text = changed("[[vip]]", "[tables]\nbackends = 16\n[[vip]]");
    for index in 0..15 {
        text += &format!(
            "[[pool.backend]]\nname=\"x{index}\"\naddress=\"10.9.0.{index}\"\npath=[{{interface=\"eth0\"}}]\n"
        );
    }
    assert_eq!(mistakes(&text), [("tables.backends".to_owned(), "17 backends do not fit 16 places; set tables.backends to 17 or more; maps that exist already must be made anew for that".to_owned())]);
}

#[test]
fn four_paths_and_equal_paths_are_refused() {
    let path = |vlan: u8| format!("[[pool.backend.path]]\ninterface = \"eth0\"\nvlan = {vlan}\n");
    let four: String = SOUND.to_owned() + &(1..=3).map(path).collect::<String>();
    assert_eq!(mistakes(&four)[0].0, "pool[1].backend[0].path[3]");
    let twice = SOUND.to_owned() + &path(1) + &path(1);
    assert_eq!(mistakes(&twice)[0].0, "pool[1].backend[0].path[2]");
}

#[test]
fn all_mistakes_are_told_at_once_in_order() {
    let text = changed("id = 2", "id = 2\nvlan = -1")
        .replace("weight = 5", "wieght = 5")
        .replace("\"plain\"\nmode", "\"plan\"\nmode");
    let fields: Vec<String> = mistakes(&text).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["member[1].vlan", "service[0].pool", "service[2].pool", "pool[1].backend[0].wieght"]);
}

#[test]
fn one_slip_in_a_name_is_told_once() {
    assert_eq!(mistakes(&changed("\"plain\"\nmode", "\"pl ain\"\nmode")).len(), 1);
    assert_eq!(mistakes(&changed("\"10.1.0.1\"", "\"10.1.0\"")).len(), 1);
}

#[test]
fn syntax_errors_are_all_told_and_hide_their_consequences() {
    let text =
        changed("id = 2", "id = = 2").replace("weight = 5", "weight 5").replace("settle = \"10s\"", "setle = \"10s\"");
    let mistakes = parse("broken.toml", &text).unwrap_err();
    let lines: Vec<(usize, &str)> = mistakes.list().iter().map(|m| (m.line, m.field.as_str())).collect();
    let line = |what: &str| text.lines().position(|line| line == what).unwrap() + 1;
    assert!(lines.iter().any(|&(at, field)| at == line("id = = 2") && field.is_empty()), "{lines:?}");
    assert!(lines.iter().any(|&(at, field)| at == line("weight 5") && field.is_empty()), "{lines:?}");
    assert!(lines.contains(&(line("setle = \"10s\""), "pool[1].setle")), "{lines:?}");
    assert!(lines.len() <= 4, "{mistakes}");
}

#[test]
fn duplicate_keys_are_told() {
    let mistakes = parse("twice.toml", &changed("weight = 5", "weight = 5\nweight = 6")).unwrap_err();
    assert!(mistakes.list()[0].mend.contains("keep one of the two"), "{mistakes}");
}

#[test]
fn a_mistake_is_drawn_with_file_line_column_field_and_mend() {
    let mistakes = parse("node.toml", &changed("weight = 5", "weight = 0")).unwrap_err();
    let mistake = &mistakes.list()[0];
    assert_eq!((mistake.line, mistake.column), (52, 10));
    let expected = r#"error: a weight of zero is refused
  --> node.toml:52:10
   |
52 | weight = 0
   |          ^ pool[1].backend[0].weight
   |
   = help: write 1 to 1000, or use state = "draining"

1 mistake in node.toml"#;
    assert_eq!(mistakes.to_string(), expected);
    assert!(mistakes.render(true).contains("\x1b["));
}

#[test]
fn keys_come_from_files_too_and_are_never_shown() {
    let folder = std::env::temp_dir().join(format!("redirector-config-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("secret"), "000102030405060708090a0b0c0d0e0f\n").unwrap();
    let file = folder.join("node.toml");
    fs::write(&file, changed("key = \"000102030405060708090a0b0c0d0e0f\"", "key_file = \"secret\"")).unwrap();
    let config = load(&file).unwrap();
    fs::write(&file, b"[node]\nid = \xff").unwrap();
    let binary = load(&file).unwrap_err();
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(config.cluster.key, sound().cluster.key);
    let shown = format!("{config:?} {}", serde_json::to_string(&config).unwrap());
    assert!(shown.contains("fingerprint ") && !shown.contains("0001020304") && !shown.contains("[0, 1, 2"));
    assert!(binary.to_string().contains("line 2 is not UTF-8"), "{binary}");
    assert!(load(&file).unwrap_err().to_string().contains("cannot read it"));
}

#[test]
fn identity_files_lie_beside_the_file_and_need_not_be_there() {
    assert_eq!((sound().cluster.identity, sound().cluster.port), (None, 4201));
    let files =
        "[cluster]\nca = \"ca.crt\"\ncertificate = \"pki/node-1.crt\"\nprivate_key = \"/keys/node-1.key\"\nport = 5000";
    let config = parse("/etc/redirector/node.toml", &changed("[cluster]", files)).unwrap();
    let expected = IdentityFiles {
        ca: "/etc/redirector/ca.crt".into(),
        certificate: "/etc/redirector/pki/node-1.crt".into(),
        private_key: "/keys/node-1.key".into(),
    };
    assert_eq!((config.cluster.identity.as_ref(), config.cluster.port), (Some(&expected), 5000));
    let json = serde_json::to_value(&config.cluster).unwrap();
    assert_eq!(json["certificate"], "/etc/redirector/pki/node-1.crt");
}

#[test]
fn a_backend_needs_decap_alone() {
    let text = "[decap]\ninterface = \"eth0\"\nsources = [\"10.0.0.0/24\"]\nvips = [\"10.1.0.1\"]\n";
    let decap = parse_decap("decap.toml", text).unwrap();
    assert_eq!(decap.gue_port, 6080);
    assert!(decap.sources[0].contains("10.0.0.77".parse().unwrap()));
    assert!(!decap.sources[0].contains("10.0.1.77".parse().unwrap()));
    let fields =
        |text| parse_decap("decap.toml", text).unwrap_err().list().iter().map(|m| m.field.clone()).collect::<Vec<_>>();
    assert_eq!(fields(""), ["decap"]);
    assert_eq!(
        fields("[decap]\ninterface = \"eth0\"\nsources = []\nvips = [1]\nport = 5\n"),
        ["decap.sources", "decap.vips[0]", "decap.port"]
    );
}

fn differences(old: &str, new: &str) -> Vec<String> {
    diff(&parse("old", old).unwrap(), &parse("new", new).unwrap()).iter().map(Change::to_string).collect()
}

#[test]
fn differences_are_named() {
    assert_eq!(differences(SOUND, SOUND), [""; 0]);
    let new = changed("weight = 5", "weight = 6")
        .replace("name = \"web6\"", "name = \"web-six\"")
        .replace("settle = \"10s\"", "settle = \"20s\"")
        .replace("[80, \"8000-8010\"]", "81")
        .replace("[[vip]]\naddress = \"2001", "[[vip]]\necho = \"drop\"\naddress = \"2001")
        .replace("0e0f", "0e10")
        .replace("[[interface]]", "[limits]\nshed_level = 1\n[[interface]]")
        + "[[pool.backend.path]]\ninterface = \"eth0\"\nvlan = 5\n[[pool.backend]]\nname = \"t2\"\naddress = \"10.2.0.10\"\npath = [{ interface = \"eth0\" }]\n";
    let found = differences(SOUND, &new);
    assert!(found[0].starts_with("~ cluster: key fingerprint "), "{found:#?}");
    assert!(found[4].starts_with("~ backend tunnel/t1: path[1] - -> {"), "{found:#?}");
    let rest: Vec<&str> =
        found.iter().map(String::as_str).enumerate().filter(|(i, _)| ![0, 4].contains(i)).map(|(_, c)| c).collect();
    assert_eq!(
        rest,
        [
            "~ limits: shed_level 0 -> 1",
            "~ vip 2001:db8::1: echo answer -> drop",
            "~ pool tunnel: settle 10s -> 20s",
            "~ backend tunnel/t1: weight 5 -> 6",
            "+ backend tunnel/t2",
            "~ service web: ports 80,8000-8010 -> 81",
            "+ service web-six",
            "- service web6",
        ]
    );
}

#[test]
fn differences_serialise() {
    let changes = diff(&sound(), &parse("new", &changed("weight = 5", "weight = 6")).unwrap());
    let json = serde_json::to_value(&changes).unwrap();
    assert_eq!(
        json,
        serde_json::json!([{ "kind": "backend", "name": "tunnel/t1", "what": "changed", "field": "weight", "old": 5, "new": 6 }])
    );
}

proptest! {
    /// Damage anywhere never panics, and what is refused has a place, a message and a mend that can be drawn.
    #[test]
    fn damaged_text_is_read_or_refused(at in 0..EXAMPLE.len(), length in 0usize..40, by in "[\\[\\]{}=\"'#\\n.,0-9a-z\u{e9}\u{1f600}-]{0,12}") {
        let boundary = |mut at: usize| { while !EXAMPLE.is_char_boundary(at) { at -= 1 } at };
        let end = boundary((at + length).min(EXAMPLE.len()));
        let text = format!("{}{by}{}", &EXAMPLE[..boundary(at).min(end)], &EXAMPLE[end..]);
        if let Err(mistakes) = parse("damaged.toml", &text) {
            prop_assert!(!mistakes.list().is_empty() && !mistakes.to_string().is_empty());
            prop_assert!(mistakes.list().iter().all(|m| !m.message.is_empty() && !m.mend.is_empty() && m.line > 0));
        }
    }

    #[test]
    fn anything_at_all_is_read_or_refused(text in ".{0,200}") {
        if let Err(mistakes) = parse("noise.toml", &text) {
            prop_assert!(!mistakes.to_string().is_empty());
        }
    }
}

#[test]
fn a_node_without_others_needs_an_interface_alone() {
    let interface = "[[interface]]\nname = \"eth0\"\n";
    for text in [interface.to_owned(), format!("[node]\nname = \"n\"\n{interface}")] {
        let config = parse("test", &text).unwrap();
        assert_eq!((config.node.id, config.node.data.to_str()), (1, Some("/var/lib/redirector")), "{text}");
    }
    let wrong = parse("test", &format!("[node]\nid = 0\n{interface}")).unwrap_err().to_string();
    assert!(wrong.contains("node.id"), "{wrong}");
    let lonely = format!("{interface}[[member]]\nid = 1\naddress = \"10.0.0.1\"\ninterface = \"eth0\"\n");
    assert!(parse("test", &lonely).unwrap_err().to_string().contains("add [node]"), "which of the members it is");
}
