#!/usr/bin/env bash
# The native tests, the emulated GPU and the addon in Node under sanitizers. Needs Linux, g++ and cmake.
#   native/test/sanitize.sh            everything, half an hour
#   native/test/sanitize.sh --short    the CPU and the addon, under AddressSanitizer and UndefinedBehaviorSanitizer
set -euo pipefail
cd "$(dirname "$0")/../.."
export DESAP_SMALL=1 # large shapes find nothing more
export UBSAN_OPTIONS=print_stacktrace=1

build() { # folder, sanitizers, target...
  printf '\n--- %s: %s\n' "$2" "${*:3}"
  npx --no-install cmake-js configure --out "$1" --CDDESAP_SANITIZE="$2" > /dev/null
  cmake --build "$1" --parallel "$(nproc)" --target "${@:3}" > "$1/build.log" 2>&1 || { cat "$1/build.log"; return 1; }
}

# Node itself is not instrumented, and never frees all that it has: its leaks are no news. Those of the addon are counted by
# test/faults.test.ts. AddressSanitizer ends the process at an absurd size, where others throw: that test is left out.
in_node() { # test file...
  printf '\n--- the addon in Node: %s\n' "$*"
  DESAP_CPU_ADDON="$PWD/build-asan/Release/desap.node" ASAN_OPTIONS=detect_leaks=0 \
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    node node_modules/vitest/vitest.mjs run --testTimeout 300000 -t '^(?!.*more than this machine has)' "$@"
}

build build-asan address,undefined desap_native_test desap
in_node test/hostile.test.ts test/host-buffer.test.ts test/lifetime.test.ts test/worker.test.ts
if [ "${1-}" = --short ]; then
  for cases in head block analysis; do build-asan/desap_native_test $cases; done
  exit
fi

export DESAP_LONG=1 # every allocation and every call fails in turn, not every so many-th
build-asan/desap_native_test
in_node test/kernels test/bad-input.test.ts test/golden.test.ts test/golden-block.test.ts test/pruner.test.ts
build build-asan address,undefined desap_simt_test desap_cuda_check_simt
# A kernel that fails leaves its threads where they are, with the texts that they hold.
ASAN_OPTIONS=detect_leaks=0 build-asan/desap_simt_test
for part in own fp32 fp16 bf16; do DESAP_PRECISION=$part build-asan/desap_cuda_check_simt; done
build build-tsan thread desap_native_test
build-tsan/desap_native_test
node node_modules/vitest/vitest.mjs run test/faults.test.ts
