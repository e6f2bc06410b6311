#!/usr/bin/env bash
# A three-node dev cluster under redis-benchmark, next to one redis-server that syncs every write, in turns on the same
# disk and cores. Prints requests per second and the ratio, the median of ROUNDS; then the longest pause that one writer
# sees on one node while another is killed.
#
#   cargo build --release && benches/end_to_end.sh
#
# Needs redis-server and redis-benchmark. ROUNDS, REQUESTS, CLIENTS, SIZE and PIPELINE may be set.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-3} requests=${REQUESTS:-20000} clients=${CLIENTS:-64} size=${SIZE:-256} pipeline=${PIPELINE:-1}
binary=${BINARY:-target/release/outrigger}
dir=$(mktemp -d "${TMPDIR:-/tmp}/og-bench.XXXX")
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait 2>/dev/null; rm -rf "$dir"' EXIT

"$binary" dev --nodes 3 --dir "$dir/dev" >"$dir/dev.log" 2>&1 &
pids+=($!)
redis-server --port 0 --unixsocket "$dir/redis.sock" --dir "$dir" --appendonly yes --appendfsync always --save '' \
  >"$dir/redis.log" 2>&1 &
pids+=($!)

socket=
for _ in $(seq 300); do
  # The directory may not be there yet.
  socket=$(find "$dir/dev" -name '*.sock' -type s 2>/dev/null | sort | head -1) || true
  if [ -n "$socket" ] && [ -S "$dir/redis.sock" ] &&
    curl -sf --unix-socket "$socket" http://o/v1/cluster/health >/dev/null; then break; fi
  sleep 0.1
done
[ -n "$socket" ] || { cat "$dir/dev.log"; exit 1; }

measure() { # socket test -> requests per second
  redis-benchmark -s "$1" -t "$2" -n "$requests" -c "$clients" -d "$size" -P "$pipeline" -r 100000 --csv 2>/dev/null |
    tail -1 | cut -d, -f2 | tr -d '"'
}
median() { printf '%s\n' "$@" | sort -n | sed -n "$((($# + 1) / 2))p"; }

printf '%-6s %14s %14s %8s\n' test outrigger/s redis/s ratio
for test in set get incr; do
  ours=() theirs=()
  for _ in $(seq "$rounds"); do
    ours+=("$(measure "$socket" "$test")")
    theirs+=("$(measure "$dir/redis.sock" "$test")")
  done
  a=$(median "${ours[@]}") b=$(median "${theirs[@]}")
  printf '%-6s %14.0f %14.0f %8.2f\n' "$test" "$a" "$b" "$(echo "$a $b" | awk '{print $1 / $2}')"
done

redis-benchmark -s "$socket" -t set -n 8000 -c 1 -d "$size" -r 100000 --csv >"$dir/pause.csv" 2>/dev/null &
writer=$!
sleep 1
kill -0 "$writer" || { echo 'the writer ended before the kill' >&2; exit 1; }
kill -9 "$(awk '$1 == "c" { print $2; exit }' "$dir/dev.log")"
wait "$writer"
awk -F, 'END { gsub(/"/, ""); print "longest pause of one writer while another node is killed: " $8 " ms (median " $5 " ms)" }' \
  "$dir/pause.csv"
