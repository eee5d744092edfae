#!/bin/sh
# Runs each fuzzer of a build for some seconds, from the corpus here: run.sh BUILD SECONDS [TARGET...]. TAP on stdout.
# What is found is left in BUILD/tests/fuzz/TARGET.found-*; new inputs are kept in BUILD/tests/fuzz/TARGET.corpus.
build=$1 seconds=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- safetensors tokenizer config schedule checkpoint request
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1
echo "1..$#"
number=0 status=0
for target in "$@"; do
    number=$((number + 1))
    own=$build/tests/fuzz/$target
    mkdir -p "$own.corpus"
    if "$build/tests/fuzz/fuzz_$target" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=3000 \
        -artifact_prefix="$own.found-" -print_final_stats=1 "$own.corpus" "$here/corpus/$target" >"$own.log" 2>&1; then
        echo "ok $number - $target stood $(sed -n 's/^stat::number_of_executed_units: *//p' "$own.log") inputs"
    else
        echo "not ok $number - $target"
        tail -n 40 "$own.log" | sed 's/^/# /'
        status=1
    fi
done
exit $status
