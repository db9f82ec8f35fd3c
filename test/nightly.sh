#!/usr/bin/env bash
# Long rounds: the crash tests at length, and every fuzz target for two minutes
# (FUZZ_TIME changes that). Ends with the first failure's code.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
FUZZ_TIME=${FUZZ_TIME:-2m}
failed=0

LODE_LONG=1 "$GO" test -race -timeout 60m -count=1 ./test/... || failed=1
LODE_LONG=1 "$GO" test -race -timeout 60m -count=1 ./agent/... || failed=1

for pkg in $("$GO" list ./...); do
  for target in $("$GO" test -list '^Fuzz' "$pkg" 2>/dev/null | grep '^Fuzz' || true); do
    echo "== $pkg $target"
    "$GO" test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZ_TIME" "$pkg" || failed=1
  done
done
exit "$failed"
