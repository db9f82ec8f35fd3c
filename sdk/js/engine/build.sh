#!/bin/sh
# Builds quickjs.wasm.gz beside this script from the QuickJS-ng sources inside
# the crate rquickjs-sys. Needs cargo, clang (14 or newer), lld, wasi-libc and
# the wasm32 builtins; on Debian: apt install clang lld wasi-libc
# libclang-rt-14-dev-wasm32. The module depends only on their versions, which
# README.md names. Linking is not told of -O: clang would run any wasm-opt that
# it finds.
set -eu
CRATE=0.14.0
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-$(mktemp -d)}
cd "$work"
if [ ! -d vendor/rquickjs-sys ]; then
	mkdir -p src && touch src/lib.rs
	printf '[package]\nname = "fetch"\nversion = "0.0.0"\nedition = "2021"\n[dependencies]\nrquickjs-sys = "=%s"\n' "$CRATE" >Cargo.toml
	cargo vendor vendor >/dev/null
fi
q=vendor/rquickjs-sys/quickjs
flags="--target=wasm32-wasi -O3 -msimd128 -mbulk-memory -D_GNU_SOURCE -DNDEBUG -fno-math-errno -D_WASI_EMULATED_PROCESS_CLOCKS -D_WASI_EMULATED_SIGNAL"
for f in quickjs libregexp libunicode dtoa; do
	[ -f $f.o ] || clang $flags -w -c $q/$f.c -o $f.o
done
for f in shim sha heap; do
	clang $flags -Wall -Wextra -Wno-unused-parameter -I$q -I"$here/../../c" -c "$here/$f.c" -o $f.o
done
clang --target=wasm32-wasi -mexec-model=reactor -Wl,--strip-all -Wl,--stack-first -Wl,-z,stack-size=1048576 \
	-o quickjs.wasm quickjs.o libregexp.o libunicode.o dtoa.o shim.o sha.o heap.o -lm -lwasi-emulated-process-clocks -lwasi-emulated-signal
gzip -9nc quickjs.wasm >"$here/quickjs.wasm.gz"
ls -l quickjs.wasm "$here/quickjs.wasm.gz"
