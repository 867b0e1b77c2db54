#!/usr/bin/env bash
# Runs a bundle (scripts/bundle) on a machine with a GPU:
#
#     ./run-on-gpu.sh [--sanitizer] [--no-benches] [PROGRAM…]
#     ./run-on-gpu.sh --first-contact | --more      # the first 8 minutes on a card, and what comes after: scripts/first-contact
#
# `hadal doctor`, every test program (or those named) with a GPU required, then the benches; a table comes last. Logs are
# written under $OUT (default ./out). --sanitizer runs the tests under compute-sanitizer instead, which takes much longer.
set -u
here=$(cd "$(dirname "$0")" && pwd)
case ${1:-} in --first-contact | --more) exec "$here/first-contact" "$1" ;; esac
out=${OUT:-./out}
sanitizer= benches=1 only=()
for arg in "$@"; do
    case $arg in
        --sanitizer) sanitizer=1 benches= ;;
        --no-benches) benches= ;;
        -*) echo "usage: $0 [--sanitizer] [--no-benches] [PROGRAM…]" >&2; exit 2 ;;
        *) only+=("$arg") ;;
    esac
done
mkdir -p "$out/logs" && out=$(cd "$out" && pwd) || exit 2
cd "$out" || exit 2
export HADAL_OFFLINE="${HADAL_OFFLINE:-1}" HADAL_REQUIRE_GPU=1 HADAL_FIXTURES="$here/fixtures" HADAL_GPU_COUNT="$out/gpu-checks.txt"
export HADAL_CACHE="${HADAL_CACHE:-$out/cache}" CRITERION_HOME="$out/criterion" RUST_BACKTRACE=1
rm -f "$HADAL_GPU_COUNT"
table= failed=0

# run NAME COMMAND…: one line of the table, the output in a log.
run() {
    local name=$1 log start=$SECONDS rc=0 word=ok
    log="$out/logs/${name// /-}.log"
    shift
    echo "== $name"
    "$@" >"$log" 2>&1 || rc=$?
    if [ $rc -ne 0 ]; then
        word="FAILED ($rc)" failed=$((failed + 1))
        tail -n 40 "$log"
    fi
    table+=$(printf '%-28s %-12s %5d s  %s' "$name" "$word" $((SECONDS - start)) \
        "$(grep -h '^test result:' "$log" | sed -E 's/.* ([0-9]+) passed; ([0-9]+) failed; ([0-9]+) ignored.*/\1 passed, \2 failed, \3 ignored/')")$'\n'
}

run doctor "$here/bin/hadal" doctor
cat "$out/logs/doctor.log"
for test in "$here"/tests/*; do
    name=$(basename "$test")
    if [ ${#only[@]} -gt 0 ] && [[ " ${only[*]} " != *" $name "* ]]; then continue; fi
    if [ -n "$sanitizer" ]; then
        # The pool would hide an overrun from the checker. nvrtc launches nothing, and memory watches the pool.
        case $name in nvrtc | memory) continue ;; esac
        HADAL_POOL=off run "$name" compute-sanitizer --error-exitcode 99 "$test" --test-threads 1
    else
        run "$name" "$test"
    fi
done
if [ -n "$benches" ] && [ ${#only[@]} -eq 0 ]; then
    run "example mlp" "$here/bin/mlp"
    run "example resnet18" "$here/bin/resnet18_fashion_mnist" --context gpu --epochs 1 --limit 2000
    run "bench ops" "$here/benches/ops" --bench gpu
    run "bench training" "$here/bin/hadal" bench step --context gpu --dtypes f32,tf32,bf16,f16 --channels-last --graph
    run "bench first steps" "$here/bin/hadal" bench first --context gpu --dtypes f32,bf16 --channels-last
    run "bench kernels" "$here/bin/hadal" bench ops --context gpu --dtypes f32,tf32,bf16,f16 --channels-last
    # Beside PyTorch, where that is installed.
    if python3 -c 'import torch' 2>/dev/null; then
        run "beside PyTorch" "$here/peers/compare" step --hadal "$here/bin/hadal" --context gpu --dtypes f32,tf32,bf16,f16 \
            --channels-last --graph --log "$out/steps.jsonl"
        run "ops beside PyTorch" "$here/peers/compare" ops --hadal "$here/bin/hadal" --context gpu --dtypes f32,tf32,bf16,f16 \
            --channels-last --log "$out/ops.jsonl"
        cat "$out/logs/beside-PyTorch.log" "$out/logs/ops-beside-PyTorch.log"
    fi
    grep -h -A 1 'time:' "$out/logs/bench-ops.log"
    cat "$out/logs/bench-training.log" "$out/logs/bench-first-steps.log" "$out/logs/bench-kernels.log"
fi
echo
"$here/gpu_checks" "$HADAL_GPU_COUNT" || failed=$((failed + 1))
printf '\n%s' "$table"
if [ $failed -gt 0 ]; then
    echo "$failed failed; logs: $out/logs"
    exit 1
fi
echo "all passed; logs: $out/logs"
