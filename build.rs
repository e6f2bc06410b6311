//! The simulation brings its own `getrandom` (tests/sim/random.rs). Those who look the symbol up while the program runs
//! find it only if it is exported.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg-tests=-rdynamic");
    }
}
