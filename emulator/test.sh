#!/bin/sh
# Builds and runs the emulator's own tests; says how many passed and failed.
set -e
here=$(cd "$(dirname "$0")" && pwd)
"$here/build.sh"
build=${HADAL_EMULATOR_BUILD:-$here/build}
for t in selftest hopper cluster layouts planted; do
    "${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -Wno-psabi -DHADAL_ROOT="\"$here/..\"" "$here/tests/$t.cpp" -o "$build/$t" -L"$build" -l:libcuda.so.1 -l:libnvrtc.so.12 -lpthread
done
failed=0
for t in selftest hopper cluster layouts; do
    "$here/run" "$build/$t" || failed=1
done
# Mistakes in the asm of kernels/, which only the real NVRTC's PTX shows.
if [ -n "${HADAL_EMU_NVRTC:-$HADAL_NVRTC}" ]; then
    "$here/run" "$build/planted" || failed=1
elif [ "$HADAL_REQUIRE_NVRTC" = 1 ]; then
    echo "planted: HADAL_REQUIRE_NVRTC is set, and HADAL_NVRTC names no real NVRTC" >&2
    failed=1
else
    echo "planted: NOT run: HADAL_NVRTC names no real NVRTC"
fi
exit $failed
