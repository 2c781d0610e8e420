//! One broken text for every rule.

use super::{changed, mistakes};

/// Each case: what to replace in the sound text, by what, the one field that is then wrong, words of the message.
const CASES: &[(&str, &str, &str, &str)] = &[
    // Unknown and missing fields.
    ("settle =", "setle =", "pool[1].setle", "did you mean \"settle\""),
    ("weight = 5", "colour = 5", "pool[1].backend[0].colour", "remove it; known here: name, address"),
    ("[node]", "[nodes]\n[node]", "nodes", "did you mean \"node\""),
    ("[node]\nid = 1", "", "node", "add [node]"),
    ("id = 1", "", "node.id", "\"id\" is missing"),
    ("address = \"10.2.0.1\"", "", "pool[0].backend[0].address", "is missing"),
    ("ports = 80\n", "", "service[1].ports", "is missing"),
    ("[cluster]", "[cluster]\nca = \"ca\"\ncertificate = \"c\"", "cluster.private_key", "all three"),
    ("[cluster]", "[cluster]\nprivate_key = \"k\"\ncertificate = \"c\"", "cluster.ca", "is missing"),
    ("mode = \"l2\"", "", "pool[0].mode", "is missing"),
    // Wrong types.
    ("weight = 5", "weight = \"5\"", "pool[1].backend[0].weight", "expected a number, found the text \"5\""),
    ("settle = \"10s\"", "settle = 10", "pool[1].settle", "expected text, found 10"),
    ("[node]", "decap = 1\n[node]", "decap", "expected a table, found 1; write [decap]"),
    ("[[interface]]", "[interface]", "interface", "expected a list, found a TOML table; write [[interface]]"),
    ("id = 2", "id = 2\nalive = \"yes\"", "member[1].alive", "true or false"),
    (
        "mode = \"l2\"",
        "mode = \"l3\"",
        "pool[0].mode",
        "\"l3\" is not a choice; write one of \"l2\", \"ipip\", \"gue\"",
    ),
    ("ports = 80\n", "ports = 80.5\n", "service[1].ports", "expected a number"),
    ("ports = 80\n", "ports = []\n", "service[1].ports", "empty"),
    ("ports = 80\n", "ports = [80, true]\n", "service[1].ports[1]", "expected a number, found true"),
    // Ranges.
    ("id = 1", "id = 0", "node.id", "0 is not within 1 to 254"),
    ("id = 1", "id = 255", "node.id", "255 is not within"),
    ("id = 2", "id = 99999999999999999999999", "member[1].id", "is not within"),
    ("weight = 5", "weight = 0", "pool[1].backend[0].weight", "state = \"draining\""),
    ("weight = 5", "weight = 1001", "pool[1].backend[0].weight", "is not within"),
    ("id = 2", "id = 2\nweight = 0", "member[1].weight", "redirector drain"),
    ("id = 2", "id = 2\nvlan = 4095", "member[1].vlan", "0 to 4094"),
    ("[[vip]]", "[limits]\nshed_level = 4\n[[vip]]", "limits.shed_level", "0 to 3"),
    ("[[vip]]", "[tables]\nbackends = 32768\n[[vip]]", "tables.backends", "16 to 32767"),
    ("[[vip]]", "[tables]\nflows4 = 1\n[[vip]]", "tables.flows4", "1024 to"),
    ("[cluster]", "[cluster]\nslots = 1000", "cluster.slots", "write 512 or 1024"),
    ("[cluster]", "[cluster]\nslots = 131072", "cluster.slots", "256 to 65536"),
    ("settle = \"10s\"", "settle = \"0s\"", "pool[1].settle", "1s to 1day"),
    ("settle = \"10s\"", "settle = \"10\"", "pool[1].settle", "is not a duration"),
    ("[[vip]]", "[timeouts]\nudp = \"3h\"\n[[vip]]", "timeouts.udp", "1s to 2h"),
    ("[[vip]]", "[timeouts]\nudp = \"1ms\"\n[[vip]]", "timeouts.udp", "1s to 2h"),
    ("[cluster]", "[cluster]\nport = 0", "cluster.port", "1 to 65535"),
    ("source =", "mtu = 100\nsource =", "pool[1].backend[0].path[0].mtu", "576 to 65535"),
    // Written forms.
    ("0e0f\"", "0e\"", "cluster.key", "30 hexadecimal digits instead of 32"),
    ("0e0f\"", "0e0g\"", "cluster.key", "not hexadecimal"),
    ("key =", "key_file =", "cluster.key_file", "cannot read"),
    (
        "[cluster]",
        "[cluster]\nca = \"\"\ncertificate = \"c\"\nprivate_key = \"k\"",
        "cluster.ca",
        "write the path of a file",
    ),
    ("\"10.1.0.1\"", "\"10.1.0.256\"", "vip[0].address", "is not an address"),
    ("\"10.1.0.1\"", "\"10.1.0.1/24\"", "vip[0].address", "write \"10.1.0.0/24\" for the whole prefix"),
    ("\"10.1.0.1\"", "\"10.1.0.1/33\"", "vip[0].address", "0 to 32"),
    ("\"10.1.0.1\"", "\"0.0.0.0/0\"", "vip[0].address", "every address"),
    ("\"2001:db8::1\"", "\"::ffff:10.1.0.9\"", "vip[1].address", "write \"10.1.0.9\""),
    ("\"10.2.0.1\"", "\"224.0.0.1\"", "pool[0].backend[0].address", "multicast"),
    ("name = \"eth0\"", "name = \"a name of many words\"", "interface[0].name", "interface's name"),
    ("name = \"b1\"", "name = \"b/1\"", "pool[0].backend[0].name", "is not a name"),
    ("[node]", "[node]\npins = \"sys\"", "node.pins", "absolute"),
    ("8000-8010", "8010-8000", "service[0].ports[1]", "write \"8000-8010\""),
    ("[80,", "[0,", "service[0].ports[0]", "1 to 65535"),
    // Names and numbers that come twice.
    ("\"2001:db8::1\"", "\"10.1.0.1/32\"", "vip[1].address", "10.1.0.1 is taken already by line 17"),
    ("[[vip]]", "[[vip]]\naddress = \"2001:0db8:0::0001\"\n[[vip]]", "vip[2].address", "taken already"),
    ("name = \"web6\"", "name = \"web\"", "service[1].name", "web is taken already"),
    (
        "[[pool]]",
        "[[pool]]\nname = \"tunnel\"\nmode = \"l2\"\nbackend = [{ name = \"b\", address = \"10.2.0.7\", path = [{ interface = \"eth0\" }] }]\n[[pool]]",
        "pool[2].name",
        "tunnel is taken already",
    ),
    (
        "[[pool.backend.path]]",
        "[[pool.backend.path]]\ninterface = \"eth0\"\n[[pool.backend]]\nname = \"b1\"\naddress = \"10.2.0.3\"\n[[pool.backend.path]]",
        "pool[0].backend[1].name",
        "b1 is taken",
    ),
    ("id = 2", "id = 1", "member[1].id", "1 is taken already"),
    ("10.0.0.2", "10.0.0.1", "member[1].address", "taken already"),
    ("[[interface]]", "[[interface]]\nname = \"eth0\"\n[[interface]]", "interface[1].name", "taken already"),
    ("[cluster]", "[cluster]\nkey_file = \"/dev/null\"", "cluster.key_file", ""),
    // Things that do not fit each other.
    ("pool = \"plain\"", "pool = \"plane\"", "service[0].pool", "there is no pool \"plane\""),
    ("vip = \"10.1.0.1\"", "vip = \"10.1.0.2\"", "service[0].vip", "10.1.0.2 is none of the [[vip]]"),
    ("[80, \"8000-8010\"]", "[80, \"70-90\"]", "service[0].ports", "70-90 and 80 of this service overlap"),
    ("vip = \"2001:db8::1\"", "vip = \"10.1.0.1\"", "service[1].ports", "also served by \"web\""),
    (
        "vip = \"2001:db8::1\"\nprotocol = \"tcp\"\nports = 80\n",
        "vip = \"10.1.0.1\"\nprotocol = \"tcp\"\nports = \"any\"\n",
        "service[1].ports",
        "also served by \"web\"",
    ),
    (
        "vip = \"2001:db8::1\"\nprotocol = \"tcp\"\nports = 80\n",
        "vip = \"10.1.0.1\"\nprotocol = \"icmp\"\n",
        "service[2].ports",
        "ICMP of 10.1.0.1 is served",
    ),
    ("protocol = \"icmp\"", "protocol = \"icmp\"\nports = 8", "service[2].ports", "ICMP has no ports"),
    ("[node]\nid = 1", "[node]\nid = 3", "node.id", "node 3 is none of the [[member]]"),
    ("key = \"000102030405060708090a0b0c0d0e0f\"", "", "cluster.key", "needs a key"),
    ("[[interface]]\nname = \"eth0\"", "", "interface", "there is no [[interface]]"),
    (
        "address = \"10.0.0.2\"\n",
        "address = \"2001:db8::2\"\nforward = \"udp\"\n",
        "member[1].address",
        "this node at 10.0.0.1 to node 2 at 2001:db8::2; write an IPv4 address of node 2",
    ),
    (
        "address = \"10.0.0.1\"\ninterface = \"eth0\"\n",
        "address = \"2001:db8::1\"\ninterface = \"eth0\"\n[[member]]\nid = 3\naddress = \"10.0.0.3\"\ninterface = \"eth0\"\nforward = \"udp\"\n",
        "member[1].address",
        "this node at 2001:db8::1 to node 3 at 10.0.0.3; write an IPv6 address of node 3",
    ),
    (
        "address = \"10.0.0.2\"\ninterface = \"eth0\"",
        "address = \"10.0.0.2\"\ninterface = \"eth1\"",
        "member[1].interface",
        "write one of eth0",
    ),
    (
        "interface = \"eth0\"\nsource",
        "interface = \"eth7\"\nsource",
        "pool[1].backend[0].path[0].interface",
        "\"eth7\" is none",
    ),
    ("[[pool.backend.path]]\ninterface = \"eth0\"\n", "", "pool[0].backend[0].path", "no path"),
    (
        "[[pool.backend]]\nname = \"b1\"\naddress = \"10.2.0.1\"\n[[pool.backend.path]]\ninterface = \"eth0\"\n",
        "",
        "pool[0].backend",
        "no active backend",
    ),
    ("name = \"b1\"", "name = \"b1\"\nstate = \"draining\"", "pool[0].backend", "no active backend"),
    (
        "interface = \"eth0\"\n[[pool]]",
        "interface = \"eth0\"\nsource = \"10.0.0.1\"\n[[pool]]",
        "pool[0].backend[0].path[0].source",
        "there is no tunnel",
    ),
    ("10.3.0.0/24", "2001:db8::/64", "pool[1].backend[0].path[0].source", "different families"),
    ("mode = \"ipip\"", "mode = \"gue\"", "pool[1].backend[0].path[0].source", "\"ipip\" only"),
];

#[test]
fn each_mistake_is_told_once_at_its_place() {
    for &(from, to, field, words) in CASES {
        let found = mistakes(&changed(from, to));
        let told = matches!(&found[..], [(at, said)] if at == field && said.contains(words));
        assert!(told, "{from:?} -> {to:?}: expected {field}: {words}\nfound {found:#?}");
    }
}
