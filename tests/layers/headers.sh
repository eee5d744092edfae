#!/bin/sh
# Each header of src/ compiles alone as C11. Usage: headers.sh SOURCE-ROOT [FOLDER-TO-SKIP]. TAP on stdout.
root=$1 skip=$2
cd "$root/src" || exit 1
headers=$(find . -name '*.h' | sed 's|^\./||' | sort)
echo "1..$(echo "$headers" | wc -l)"
number=0
for header in $headers; do
    number=$((number + 1))
    case $header in
    "${skip:-/}"/* | kernels/cuda/*)
        echo "ok $number - $header # SKIP not part of this build"
        continue
        ;;
    esac
    # Twice: a header without a guard shows.
    if why=$(printf '#include "%s"\n#include "%s"\n' "$header" "$header" |
        ${CC:-cc} -std=c11 -D_GNU_SOURCE -DTS_VERSION='""' -I. -fsyntax-only \
            -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Werror -Wno-unused-function -x c - 2>&1); then
        echo "ok $number - $header compiles alone"
    else
        echo "not ok $number - $header compiles alone"
        echo "$why" | sed 's/^/# /'
    fi
done
