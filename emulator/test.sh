#!/bin/sh
# Builds and runs the emulator's own tests; says how many passed and failed.
set -e
here=$(cd "$(dirname "$0")" && pwd)
"$here/build.sh"
build=${HADAL_EMULATOR_BUILD:-$here/build}
"${CXX:-g++}" -std=c++17 -O1 -Wall -Wextra -Wno-psabi "$here/tests/selftest.cpp" -o "$build/selftest" -L"$build" -l:libcuda.so.1 -l:libnvrtc.so.12 -lpthread
exec "$here/run" "$build/selftest"
