#!/bin/sh
# Builds libcuda.so.1, libnvrtc.so.12 and ptx2cpp into emulator/build (or $HADAL_EMULATOR_BUILD), when a source is newer than they are.
set -e
here=$(cd "$(dirname "$0")" && pwd)
out=${HADAL_EMULATOR_BUILD:-$here/build}
cxx=${CXX:-g++}
stamp=$out/stamp
# Several of these may start at once: all but one wait.
mkdir -p "$out"
if command -v flock >/dev/null 2>&1 && [ -z "$HADAL_EMULATOR_LOCKED" ]; then
    HADAL_EMULATOR_LOCKED=1 exec flock "$out/lock" "$0" "$@"
fi
# Kernels are compiled with the headers beside the libraries.
mkdir -p "$out/include"
for h in "$here"/include/*.h; do
    to=$out/include/$(basename "$h")
    cmp -s "$h" "$to" || { cp "$h" "$to.new" && mv "$to.new" "$to"; }
done
# The libraries are built for this very machine, as kernels are.
machine="$("$cxx" -dumpfullversion) $(grep -m1 -E '^(flags|Features)' /proc/cpuinfo 2>/dev/null | cksum) $HADAL_EMULATOR_FLAGS"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$machine" ] && [ -z "$(find "$here/src" "$here/ptx" "$here/include/emu_abi.h" "$here/build.sh" -newer "$stamp" 2>/dev/null)" ]; then
    exit 0
fi
rm -f "$stamp"
# As old as the sources that are read now: one that changes meanwhile is newer.
echo "$machine" >"$stamp.new"
work=$out/work
rm -rf "$work"
mkdir -p "$work"
# Every function that cudarc may look up exists; those that are not emulated say so and fail (weak: a real one replaces it).
{
    echo '#include <cstdio>'
    echo 'static int absent(const char* f) { fprintf(stderr, "hadal emulator: %s is not emulated", f); fputc(10, stderr); return 801; }'
    while read -r f; do
        echo "extern \"C\" __attribute__((weak, visibility(\"default\"))) int $f() { return absent(\"$f\"); }"
    done <"$here/src/symbols.txt"
} >"$work/stubs.cpp"
flags="-std=c++17 -O2 -march=native -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Wextra -g1 $HADAL_EMULATOR_FLAGS"
case $(uname -m) in x86_64) flags="$flags -mno-red-zone" ;; esac
both="compile translate real_nvrtc counts"
cuda="fiber block registers cards null cluster launch memory memcalls device stream graph module hooks ptx mbarrier bulk tensor_map wgmma $both"
list=
for f in $cuda nvrtc; do list="$list $here/src/$f.cpp"; done
printf '%s\n' $list "$work/stubs.cpp" | xargs -P "$(nproc 2>/dev/null || echo 2)" -I{} sh -c \
    "$cxx $flags -c '{}' -o '$work/'\$(basename '{}' .cpp).o || exit 255"
# The translator of PTX, a program of its own (ptx/main.cpp).
for f in "$here"/ptx/*.cpp; do basename "$f" .cpp; done | xargs -P "$(nproc 2>/dev/null || echo 2)" -I{} sh -c \
    "$cxx -std=c++17 -O1 -Wall -Wextra -c '$here/ptx/{}.cpp' -o '$work/ptx2cpp-{}.o' || exit 255"
objects=
for f in $cuda stubs; do objects="$objects $work/$f.o"; done
nvrtc=
for f in nvrtc $both; do nvrtc="$nvrtc $work/$f.o"; done
$cxx -shared -Wl,-soname,libcuda.so.1 -Wl,-z,defs -o "$out/libcuda.so.1.new" $objects -ldl -lpthread
$cxx -shared -Wl,-soname,libnvrtc.so.12 -Wl,-z,defs -o "$out/libnvrtc.so.12.new" $nvrtc -ldl -lpthread
$cxx -o "$out/ptx2cpp.new" "$work"/ptx2cpp-*.o -ldl
mv "$out/libcuda.so.1.new" "$out/libcuda.so.1"
mv "$out/libnvrtc.so.12.new" "$out/libnvrtc.so.12"
mv "$out/ptx2cpp.new" "$out/ptx2cpp"
ln -sf libcuda.so.1 "$out/libcuda.so"
ln -sf libnvrtc.so.12 "$out/libnvrtc.so"
rm -rf "$work"
mv "$stamp.new" "$stamp"
