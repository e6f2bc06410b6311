# `just` lists these. Everything runs on a fresh clone with cargo alone, except where a recipe says so.

set positional-arguments

[private]
default:
    @just --list --unsorted

# Formats the code.
fmt:
    cargo fmt --all

# Formatting, lints with warnings denied, and, where cargo-deny is installed, licences and sources.
lint:
    cargo fmt --all -- --check
    cargo clippy --all-targets --locked -- -D warnings
    @if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: licences not checked"; fi

# All tests, or those whose name contains what is given: `just test gossip`.
test *args:
    cargo test --locked "$@"

# The Helm chart: rendered, checked against Kubernetes' schemas, alerts and dashboard against a real Prometheus.
helm *args:
    tests/helm/run "$@"

# The image: built and run on a Docker engine of its own. As root, with docker.io and debootstrap; many minutes.
docker:
    tests/docker/run

# What must pass before a change lands.
ci:
    .ci/run

# Does the simulated world find faults put into the program's source? One build and some seeds for each: a long while.
mutants *names:
    tests/sim/mutants/run "$@"

# Benchmarks of the rooms: register, journal, store, transport, resp.
bench *args:
    cargo bench --locked "$@"

# A local cluster of three nodes; Ctrl-C stops it.
dev *args:
    cargo run --release --locked -- dev "$@"

# A three-node cluster under redis-benchmark, next to redis-server, in turns. Needs redis-server and redis-tools.
bench-peers:
    cargo build --release --locked
    benches/end_to_end.sh
