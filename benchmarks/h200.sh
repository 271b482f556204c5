#!/usr/bin/env bash
# All that needs an NVIDIA GPU: measures first, in steps of at most eight minutes; resumes where it was stopped.
#
#   benchmarks/h200.sh                    every step in turn, those with something left again and again
#   benchmarks/h200.sh STEP [ARGS...]     one step, once; ARGS as in benchmarks/gpu.py (--batch 64 --model vit_base)
#
# doctor      what is there
# tensorrt    units as TensorRT engines, half precision and int8 (where the package tensorrt is)
# baselines   units in torch: half precision with cuDNN's fastest kernels, the int8 product
# packed      units in our kernels as they are, 2 to 8 bits; these three for all models at batch 1, then 64
# device      seconds of each step of a search on the GPU, and on this CPU
# tests       the tests that take a CUDA device where there is one
# check       every kernel, width and shape against float64
#
# Each step leaves results that are of use alone. Nothing is tuned; clocks and power limits are never set, the card is never reset;
# it stops where another process computes on it. Exit code 75: something is left, run it again. Results and logs lie in $OUT
# (default benchmarks/results/gpu). Copied back from another machine, the folder is put there again before the next call; nothing
# else is needed to resume. Needs torch >= 2.11 with CUDA, triton and nvidia-ml-py; `device` needs mpsearch's dependencies, `tests` pytest.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
MINUTES=${MINUTES:-7}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD:${PYTHONPATH:-} OMP_NUM_THREADS=4 TRITON_DEFAULT_FP_FUSION=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/.triton-cache}
unset TRITON_INTERPRET
TESTS=(tests/hardware/test_kernels_interpreted.py tests/deploy/test_packed_kernels.py tests/reconstruct/test_capture.py)
STEPS=(doctor tensorrt baselines packed device tests check)
mkdir -p "$OUT/logs"

call() { # name, arguments
    local name=$1 limit=$((MINUTES * 60 + 45))
    shift
    case $name in
        device) timeout "$limit" env -u OMP_NUM_THREADS "$PYTHON" benchmarks/device.py --out "$OUT/device.json" "$@" ;;
        tests) timeout "$limit" "$PYTHON" -m pytest -n 0 -q -p no:cacheprovider "${TESTS[@]}" "$@" ;;
        *) timeout "$limit" "$PYTHON" benchmarks/gpu.py "$name" --out "$OUT" --minutes "$MINUTES" "$@" ;;
    esac
}

step() { # name, arguments
    local code log
    log="$OUT/logs/$(date -u +%Y%m%dT%H%M%S)-$1.log"
    echo "== $* (log: $log)"
    call "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 124 ] && [ "$1" != tests ] && code=75
    return "$code"
}

if [ $# -gt 0 ]; then
    step "$@"
    exit $?
fi
step doctor || exit $?
left=("${STEPS[@]:1}") failed=0
for _ in $(seq "${MOST_ROUNDS:-40}"); do
    again=()
    for name in "${left[@]}"; do
        step "$name"
        case $? in
            0) ;;
            75) again+=("$name") ;;
            *) echo "$name failed; its log says why. The others go on." >&2; failed=1 ;;
        esac
    done
    [ ${#again[@]} -eq 0 ] && exit "$failed"
    left=("${again[@]}")
done
exit 75
