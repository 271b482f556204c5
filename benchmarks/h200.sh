#!/usr/bin/env bash
# All that needs an NVIDIA GPU, in steps of at most ten minutes; resumes where it was stopped.
#
#   benchmarks/h200.sh                    every step, again and again until nothing is left
#   benchmarks/h200.sh STEP [ARGS...]     one step, once: doctor, check, table; ARGS as in benchmarks/gpu.py (--batch 64 --model vit_base)
#
# Exit code 75: time was up, run it again. Results and logs lie in $OUT (default benchmarks/results/gpu). Copied back from another machine, the folder is
# put there again before the next call; nothing else is needed to resume. Needs torch >= 2.11 with CUDA, triton and nvidia-ml-py.
# Never sets clocks or power limits, never resets the card; stops where another process computes on it.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results/gpu}
MINUTES=${MINUTES:-9}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=$PWD:${PYTHONPATH:-} OMP_NUM_THREADS=4 TRITON_DEFAULT_FP_FUSION=1 TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/.triton-cache}
unset TRITON_INTERPRET
mkdir -p "$OUT/logs"

step() { # name, arguments
    local name=$1 code log
    shift
    log="$OUT/logs/$(date -u +%Y%m%dT%H%M%S)-$name.log"
    echo "== $name $* (log: $log)"
    timeout $((MINUTES * 60 + 45)) "$PYTHON" benchmarks/gpu.py "$name" --out "$OUT" --minutes "$MINUTES" "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    [ "$code" -eq 124 ] && code=75
    return "$code"
}

until_done() { # name, arguments: again while it says that something is left
    local code tries=0
    while true; do
        step "$@"
        code=$?
        [ "$code" -ne 75 ] && return "$code"
        tries=$((tries + 1))
        [ "$tries" -ge "${MOST_TRIES:-40}" ] && return 75
    done
}

if [ $# -gt 0 ]; then
    step "$@"
    exit $?
fi
step doctor || exit $?
until_done check || { echo "A kernel is wrong on this device: see $OUT/check.json. Nothing is timed." >&2; exit 1; }
until_done table
