use std::io::Write as _;

use proptest::prelude::*;

use super::*;

fn load(toml: &str) -> Result<Config, ConfigError> {
    load_with(toml, &[])
}

fn load_with(toml: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(toml.as_bytes()).unwrap();
    Config::load(Some(file.path()), &environment.iter().copied().collect(), Overrides::default())
}

fn refusal(toml: &str, environment: &[(&str, &str)]) -> String {
    let message = load_with(toml, environment).unwrap_err().to_string();
    assert!(!message.contains('\n'), "more than one line: {message:?}");
    message
}

fn default_config() -> Config {
    Config::load(None, &Environment::default(), Overrides::default()).unwrap()
}

const THREE: &str = r#"
[node]
name = "a"
[cluster]
voters = ["a", "b", "c"]
key_file = "k"
[peer]
listen = "127.0.0.1:7117"
"#;

#[test]
fn with_nothing_set_a_node_is_alone() {
    let config = default_config();
    assert!(config.is_alone());
    assert_eq!(config.node.name.as_str(), "node");
    assert_eq!(config.node.data_dir, Path::new("./outrigger-data"));
    assert_eq!(config.socket, SocketConfig { path: "./outrigger.sock".into(), mode: 0o660 });
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9464");
    assert_eq!(config.cluster.voters, std::slice::from_ref(&config.node.name));
    assert_eq!((config.cluster.replication_factor, &config.cluster.identity), (None, &None));
    assert_eq!(config.store.value_size_max, 1024 * 1024);
    assert_eq!(config.store.key_size_max, 1024);
    assert_eq!((config.store.outbox_entries_max, config.store.outbox_size_max), (10_000, 64 * 1024 * 1024));
    assert_eq!(config.store.idle_evict_after, Duration::from_secs(600));
    assert_eq!(config.store.unused_drop_after, Duration::from_secs(3600));
    assert_eq!(config.timeouts.propose, Duration::from_secs(2));
}

#[test]
fn the_documented_file_is_the_defaults_and_names_every_key() {
    let text = include_str!("../../config/outrigger.toml");
    assert_eq!(load(text).unwrap(), default_config());
    let mut section = "";
    let mut named = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, value)) = line.trim_start_matches("# ").split_once(" = ") {
            named.push(format!("{section}.{key}"));
            if key == "tls" {
                let inner = value.trim_matches(['{', '}', ' ']).split(", ");
                named.extend(inner.map(|pair| format!("{section}.tls.{}", pair.split(' ').next().unwrap())));
            }
        }
    }
    for key in KEYS {
        assert!(named.iter().any(|name| name == key.path), "{} is not documented", key.path);
    }
}

#[test]
fn environment_covers_the_file_and_flags_cover_both() {
    let environment = [("OUTRIGGER__NODE__NAME", "b"), ("OUTRIGGER__CLUSTER__VOTERS", "a, b,c"), ("OTHER", "x")];
    assert_eq!(load_with(THREE, &environment).unwrap().node.name.as_str(), "b");

    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(THREE.as_bytes()).unwrap();
    let flags = Overrides::default()
        .text("node.name", Some("c".to_owned()))
        .text("node.data_dir", None)
        .list("peer.seeds", vec!["h:1".to_owned()]);
    let config = Config::load(Some(file.path()), &environment.into_iter().collect(), flags).unwrap();
    assert_eq!(config.node.name.as_str(), "c");
    assert_eq!(config.peer.seeds, ["h:1"]);
}

#[test]
fn a_replication_factor_is_a_number_in_every_layer_and_none_where_all_replicate_all() {
    let of =
        |toml: &str, environment: &[(&str, &str)]| load_with(toml, environment).unwrap().cluster.replication_factor;
    let three = THREE.replace("voters", "replication_factor = 3\nvoters");
    assert_eq!((of(THREE, &[]), of(&three, &[])), (None, Some(3)));
    // More than there are voters is no mistake: more may come.
    let variable = |value| [("OUTRIGGER__CLUSTER__REPLICATION_FACTOR", value)];
    assert_eq!((of(&three, &variable("255")), of(&three, &variable("0"))), (Some(255), None));
    assert!(
        refusal(&three, &variable("three")).contains("environment variable OUTRIGGER__CLUSTER__REPLICATION_FACTOR")
    );
    let flags = Overrides::default().text("cluster.replication_factor", Some("5".to_owned()));
    let config = Config::load(None, &variable("3").into_iter().collect(), flags).unwrap();
    assert_eq!(config.cluster.replication_factor, Some(5));
    let wrong = Overrides::default().text("cluster.replication_factor", Some("-3".to_owned()));
    let error = Config::load(None, &Environment::default(), wrong).unwrap_err().to_string();
    assert!(error.contains("flag --replication-factor") && error.contains("\"-3\""), "{error}");
    assert_eq!(load(&load(&three).unwrap().to_toml()).unwrap().cluster.replication_factor, Some(3));
}

#[test]
fn every_refusal_names_key_value_and_wish() {
    for (toml, parts) in [
        ("[node]\nname = \"-a\"", &["node.name", "\"-a\"", "letter or digit first"] as &[&str]),
        ("[node]\nname = 3", &["node.name", "got 3"]),
        ("[node]\nnam = \"a\"", &["unknown key node.nam", "did you mean node.name"]),
        ("[knots]\nx = 1", &["unknown key knots", "sections are"]),
        ("node = 1", &["node", "got 1", "want a table"]),
        ("[node\nname = 1", &["line 1", "not TOML"]),
        ("[socket]\nmode = \"0999\"", &["socket.mode", "0999", "octal"]),
        ("[socket]\nmode = \"07777\"", &["socket.mode", "octal"]),
        ("[socket]\nmode = \"+660\"", &["socket.mode", "octal"]),
        ("[peer]\nseeds = [\"a\"]", &["peer.seeds", "host:port", "\"a\""]),
        ("[peer]\nseeds = [\"a:0\"]", &["peer.seeds", "host:port"]),
        ("[peer]\nseeds = [1]", &["peer.seeds", "[1]", "list"]),
        ("[peer]\nlisten = \"localhost\"", &["peer.listen", "localhost", "IP:port"]),
        ("[peer]\nadvertise = \"0.0.0.0:1\"", &["peer.advertise", "0.0.0.0:1", "dial"]),
        ("[store]\nvalue_size_max = \"65MiB\"", &["store.value_size_max", "65MiB", "64MiB"]),
        ("[store]\nkey_size_max = \"0\"", &["store.key_size_max", "64KiB"]),
        ("[store]\noutbox_entries_max = -1", &["store.outbox_entries_max", "-1", "0 to 1000000"]),
        ("[store]\noutbox_entries_max = [\"1\"]", &["store.outbox_entries_max", "0 to 1000000"]),
        ("[store]\noutbox_size_max = \"2GiB\"", &["store.outbox_size_max", "1024MiB"]),
        ("[store]\ndurability = \"maybe\"", &["store.durability", "maybe", "\"fsync\" or \"os\""]),
        ("[timeouts]\npropose = \"61s\"", &["timeouts.propose", "61s", "1ms to 1m"]),
        ("[timeouts]\npropose = \"0s\"", &["timeouts.propose", "0s"]),
        ("[cluster]\nvoters = [\"node\", \"b\", \"node\"]", &["cluster.voters", "node stands twice"]),
        ("[cluster]\nvoters = [\"b\", \"c\"]", &["node.name", "got \"node\"", "[\"b\", \"c\"]"]),
        ("[cluster]\nvoters = [\"node\", \"b\"]", &["cluster.key_file", "cluster.tls", "prove to each other"]),
        ("[cluster]\nreplication_factor = 256", &["cluster.replication_factor", "256", "1 to 255", "0 for all"]),
        ("[cluster]\nreplication_factor = -1", &["cluster.replication_factor", "-1", "1 to 255"]),
        ("[cluster]\nreplication_factor = \"all\"", &["cluster.replication_factor", "\"all\"", "0 for all"]),
        ("[cluster]\nreplication_factor = [3]", &["cluster.replication_factor", "[3]", "1 to 255"]),
        ("[cluster]\ntls = { ca = \"x\" }", &["cluster.tls", "cluster.tls.cert and cluster.tls.key"]),
        ("[cluster]\ntls = \"x\"", &["cluster.tls", "want a table"]),
        ("[cluster]\nkey_file = \"k\"\ntls = { ca = \"x\" }", &["cluster.key_file", "not both"]),
        ("[cluster]\nid = \"\"", &["cluster.id", "\"\""]),
    ] {
        let message = refusal(toml, &[]);
        for part in parts {
            assert!(message.contains(part), "{toml:?} gave {message:?}, which lacks {part:?}");
        }
    }
}

#[test]
fn unknown_variables_are_errors_too() {
    let message = refusal("", &[("OUTRIGGER__NODE__NANE", "a")]);
    assert!(message.contains("environment variable OUTRIGGER__NODE__NANE") && message.contains("node.name"));
    assert!(refusal("", &[("OUTRIGGER__node__name", "a")]).contains("unknown key"));
    assert!(refusal("", &[("OUTRIGGER__NODE__NAME", "")]).contains("node.name: got \"\""));
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::load(Some(Path::new("/no/such.toml")), &Environment::default(), Overrides::default());
    assert!(error.unwrap_err().to_string().contains("/no/such.toml"));
}

#[test]
fn peers_are_told_an_address_they_can_dial() {
    assert_eq!(load(THREE).unwrap().peer.advertise, "127.0.0.1:7117");
    let everywhere = THREE.replace("127.0.0.1", "0.0.0.0");
    let message = refusal(&everywhere, &[]);
    assert!(message.contains("peer.advertise") && message.contains("POD_IP"), "{message}");
    assert_eq!(load_with(&everywhere, &[("POD_IP", "10.1.2.3")]).unwrap().peer.advertise, "10.1.2.3:7117");
    assert_eq!(load_with(&everywhere, &[("POD_IP", "fd00::7")]).unwrap().peer.advertise, "[fd00::7]:7117");
    assert!(refusal(&everywhere, &[("POD_IP", "pod-7")]).contains("POD_IP"));
    let named = [("OUTRIGGER__PEER__ADVERTISE", "a.app.svc:7117")];
    assert_eq!(load_with(&everywhere, &named).unwrap().peer.advertise, "a.app.svc:7117");
}

#[test]
fn a_socket_path_longer_than_the_system_takes_is_refused() {
    let at_limit = format!("[socket]\npath = \"{}\"", "s".repeat(SOCKET_PATH_BYTES_MAX));
    assert!(load(&at_limit).is_ok());
    let message = refusal(&at_limit.replacen("= \"s", "= \"ss", 1), &[]);
    assert!(message.contains("socket.path") && message.contains("107"), "{message}");
}

#[test]
fn what_is_printed_reads_back_the_same() {
    let pem = "[node]\ndata_dir = 'a \"b\\c'\n[cluster]\ntls = { ca = \"1\", cert = \"2\", key = \"3\" }\n\
               [store]\nvalue_size_max = \"1001B\"\ndurability = \"os\"\nidle_evict_after = \"90s\"\n[socket]\nmode = \"0o7\"";
    for config in [default_config(), load(THREE).unwrap(), load(pem).unwrap()] {
        assert_eq!(load(&config.to_toml()).unwrap(), config);
    }
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| toml::Value::String(text).to_string()),
        "[0-9.+-]{1,12}(s|ms|m|h|years|MiB|KB|)".prop_map(|text| toml::Value::String(text).to_string()),
        "\\[?[a-z0-9.:]{0,9}\\]?:[0-9]{0,6}".prop_map(|text| format!("[{}]", toml::Value::String(text))),
        any::<i64>().prop_map(|number| number.to_string()),
        Just("{ a = 1 }".to_owned()),
        Just("[[], 1.5, 1979-05-27]".to_owned()),
    ]
}

proptest! {
    #[test]
    fn no_file_panics(text in any::<String>()) {
        if let Err(error) = load(&text) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn no_value_panics(key in 0..KEYS.len(), value in any_value(), variable in any::<String>()) {
        let (section, name) = KEYS[key].path.split_once('.').unwrap();
        if let Err(error) = load(&format!("{section}.{name} = {value}")) {
            prop_assert!(!error.to_string().contains('\n'), "{error}");
        }
        let shouted = format!("OUTRIGGER__{}", KEYS[key].path.to_uppercase().replace('.', "__"));
        let environment = [(shouted, variable.clone()), (format!("OUTRIGGER__{variable}"), value)];
        for pair in environment {
            if let Err(error) = Config::load(None, &[pair].into_iter().collect(), Overrides::default()) {
                prop_assert!(!error.to_string().contains('\n'), "{error}");
            }
        }
    }

    #[test]
    fn what_loads_prints_and_loads_again(key in 0..KEYS.len(), value in any_value()) {
        let toml = format!("{} = {value}", KEYS[key].path);
        if let Ok(config) = load(&toml) {
            prop_assert_eq!(load(&config.to_toml()).unwrap(), config);
        }
    }
}

const ACCESS: &str = r#"
[access]
rules = [
    { uid = 1000, orgs = ["*"], allow = "write" },
    { gid = [7, 8], token_file = "t \"x", orgs = ["acme", "team-*"], namespaces = "pub", allow = "read" },
    { anyone = true, orgs = ["_"], allow = "read" },
    { uid = 0, admin = true },
]
[[limits.orgs]]
org = "acme"
bytes_max = "1GiB"
[[limits.orgs]]
org = "*"
requests_per_second_max = 100
"#;

#[test]
fn rules_and_limits_are_lists_of_tables() {
    let config = load(ACCESS).unwrap();
    assert_eq!((config.access.len(), config.limits.len()), (4, 2));
    assert_eq!((&config.access[1].gids[..], &config.access[3].orgs[..]), (&[7, 8][..], &[][..]));
    assert_eq!(config.limits[0].bytes_max, Some(1024 * 1024 * 1024));
    assert_eq!(load(&config.to_toml()).unwrap(), config, "{}", config.to_toml());
    let by_helm = load("[[access.rules]]\nuid = 1000.0\ngid = [7.0]\nadmin = true").unwrap();
    assert_eq!((&by_helm.access[0].uids[..], &by_helm.access[0].gids[..]), (&[1000][..], &[7][..]));
    let environment = [("OUTRIGGER__ACCESS__RULES", "[{ uid = 5, orgs = [\"*\"], allow = \"read\" }]")];
    let config = load_with(ACCESS, &environment).unwrap();
    assert_eq!((config.access.len(), &config.access[0].uids[..]), (1, &[5][..]));
}

/// A rule that says too little must not be taken for one that says "all".
#[test]
fn what_a_rule_leaves_out_never_widens_it() {
    for (rule, why) in [
        ("uid = 1000, allow = \"write\"", "orgs"),
        ("uid = 1000, orgs = [\"*\"]", "allows nothing"),
        ("orgs = [\"*\"], allow = \"read\"", "for whom"),
        ("uid = [], orgs = [\"*\"], allow = \"read\"", "uid"),
        ("uid = 1, orgs = [], allow = \"read\"", "orgs"),
        ("uid = 1, orgs = [\"a\"], namespaces = [], allow = \"read\"", "namespaces"),
        ("uid = 1, namespaces = [\"a\"], admin = true", "namespaces without orgs"),
        ("uid = 1, anyone = true, admin = true", "anyone"),
        ("uid = 1, orgs = [\"a/b\"], allow = \"read\"", "a/b"),
        ("uid = 1, orgs = [\"outrigger.system\"], allow = \"read\"", "outrigger.system"),
        ("uid = 1, orgs = [\"a\"], allow = \"all\"", "\"all\\\""),
        ("uid = -1, admin = true", "uid"),
        ("uid = 1.5, admin = true", "uid"),
        ("uid = \"root\", admin = true", "uid"),
        ("uid = 1, admin = \"yes\"", "boolean"),
        ("uid = 1, admim = true", "admim"),
        ("token_file = \"\", admin = true", "token_file"),
    ] {
        let message = refusal(&format!("[access]\nrules = [{{ uid = 1, admin = true }}, {{ {rule} }}]"), &[]);
        assert!(message.contains("access.rules, table 2"), "{rule}: {message}");
        assert!(message.contains(why), "{rule}: {message}");
    }
    for (limits, why) in [
        ("[{ org = \"a\" }]", "limits nothing"),
        ("[{ org = \"a\", bytes_max = \"much\" }]", "much"),
        ("[{ org = \"a\", requests_per_second_max = 0 }]", "1 or more"),
        ("[{ bytes_max = \"1B\" }]", "org"),
        ("[\"a\"]", "tables"),
        ("3", "tables"),
    ] {
        let message = refusal(&format!("[limits]\norgs = {limits}"), &[]);
        assert!(message.contains("limits.orgs") && message.contains(why), "{limits}: {message}");
    }
    for text in ["[{ uid = 1 ", "x", "[]\nother = 1", ""] {
        assert!(refusal("", &[("OUTRIGGER__ACCESS__RULES", text)]).contains("access.rules"), "{text:?}");
    }
}
