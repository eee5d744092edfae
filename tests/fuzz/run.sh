#!/bin/sh
# Runs the fuzzers of a build for some seconds each, as many at a time as there are cores, from the corpus here:
# run.sh BUILD SECONDS [TARGET...]. TAP on stdout. What is found is left in BUILD/tests/fuzz/TARGET.found-*; new inputs
# are kept in BUILD/tests/fuzz/TARGET.corpus. A fresh build sees the same inputs in the same order each time, so that a
# change is judged by what it changes; FUZZ_SEED=N chooses others, 0 new ones.
here=$(cd "$(dirname "$0")" && pwd)
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1

# one BUILD SECONDS TARGET: one target, and its claim in one piece.
one() {
    own=$1/tests/fuzz/$3
    mkdir -p "$own.corpus"
    if "$1/tests/fuzz/fuzz_$3" -max_total_time="$2" -seed="${FUZZ_SEED:-1}" -max_len=65536 -timeout=60 -rss_limit_mb=3000 \
        -artifact_prefix="$own.found-" -print_final_stats=1 "$own.corpus" "$here/corpus/$3" >"$own.log" 2>&1; then
        echo "ok - $3 stood $(sed -n 's/^stat::number_of_executed_units: *//p' "$own.log") inputs in $2 s"
    else
        printf 'not ok - %s\n%s\n' "$3" "$(tail -n 40 "$own.log" | sed 's/^/# /')"
        return 1
    fi
}

if [ "$1" = --one ]; then
    shift
    one "$@"
    exit
fi
build=$1 seconds=$2
shift 2
if [ $# -eq 0 ]; then
    for target in "$here"/corpus/*; do set -- "$@" "${target##*/}"; done
fi
echo "1..$#"
printf '%s\n' "$@" | xargs -P "$(nproc)" -I '{}' "$0" --one "$build" "$seconds" '{}'
