//! Configuration files and variables that say anything: refused in one line, or a configuration that says of itself what
//! reads back as the same.

use std::fs;

use outrigger::config::{Config, Environment, Overrides};

use crate::engine::{Target, fast_dir, hash};

const WORDS: &[&[u8]] = &[
    b"[node]\n",
    b"[socket]\n",
    b"[peer]\n",
    b"[cluster]\n",
    b"[cluster.tls]\n",
    b"[admin]\n",
    b"[store]\n",
    b"[timeouts]\n",
    b"name = ",
    b"voters = [\"a\", \"a\"]\n",
    b"\"\"\"",
    b"'''",
    b"\\u0000",
    b"\\n",
    b"[[",
    b"{",
    b"= [",
    b"inf",
    b"1979-05-27",
    b"listen = \"[::]:0\"\n",
    b"mode = \"7777\"\n",
    b"max_skew = \"0s\"\n",
    b"\"10000000000000y\"",
    b"\"1EiB\"",
    b"\"0.0.0.0:65536\"",
    b"OUTRIGGER__NODE__NAME=",
    b"\n---\n",
    b"POD_IP=::1\n",
    b"\xe2\x80\xae",
    b"\xff",
    b"a.b.c = 1\n",
    b"idle_evict_after = \"1ns\"\n",
];

#[test]
fn anything_configured_is_taken_or_refused_in_one_line() {
    let dir = fast_dir();
    let path = dir.path().join("outrigger.toml");
    Target { name: "config", seeds: vec![include_bytes!("../../config/outrigger.toml").to_vec()], words: WORDS }.run(
        |input, _| {
            // After a line of dashes, variables: one per line.
            let divider = b"\n---\n";
            let cut = input.windows(divider.len()).position(|part| part == divider);
            let (file, variables) = cut.map_or((input, &[][..]), |at| (&input[..at], &input[at + divider.len()..]));
            let variables = String::from_utf8_lossy(variables).into_owned();
            let environment: Environment = variables.lines().filter_map(|line| line.split_once('=')).collect();
            fs::write(&path, file).unwrap();
            match Config::load(Some(&path), &environment, Overrides::default()) {
                Err(error) => {
                    let told = error.to_string();
                    assert!(!told.is_empty() && !told.contains(char::is_control), "not one line: {told:?}");
                    assert!(told.len() < 4_096, "{} bytes: {told:?}", told.len());
                    // Where it stands apart from what it says.
                    hash(&told.chars().filter(char::is_ascii_alphabetic).take(120).collect::<String>())
                }
                Ok(config) => {
                    let told = config.to_toml();
                    fs::write(&path, &told).unwrap();
                    let again = Config::load(Some(&path), &Environment::default(), Overrides::default());
                    let again = again.unwrap_or_else(|why| panic!("{why}: what was rendered does not read: {told}"));
                    assert_eq!(again.to_toml(), told);
                    hash(&told)
                }
            }
        },
    );
}
