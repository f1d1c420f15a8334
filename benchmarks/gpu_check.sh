#!/bin/bash
# Everything that a GPU should be asked, in one command that installs nothing from a network; see benchmarks/README.md.
# From the root of the project:
#     bash benchmarks/gpu_check.sh            # within BUDGET_S seconds (520); a step that fails or hangs stops no other
# BUDGET_S, STEPS ("env smoke checks quick kernels full step profile tiles ncu": those wanted, in this order),
# GPU_CHECK_* (sizes, gpu_check.py), PY (python3), WHEELS (.whl; empty: nothing to install), SITE, OUT.
set -u
SECONDS=0
BUDGET_S=${BUDGET_S:-520} PY=${PY:-python3} WHEELS=${WHEELS-.whl} OUT=${OUT:-/tmp/gpu_check_out} SITE=${SITE:-/tmp/site}
STEPS=${STEPS:-env smoke checks quick kernels full step profile tiles ncu}
export OUT GPU_CHECK_WORK=${GPU_CHECK_WORK:-/tmp/gpu_check} GPU_CHECK_DEVICE=${GPU_CHECK_DEVICE:-cuda}
work=$GPU_CHECK_WORK log=$OUT/log.txt
rm -rf "$work"; mkdir -p "$work" "$OUT"; : >"$log"; : >"$work/steps.tsv"
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HOME=$work/hf MPLBACKEND=Agg
export TRITON_CACHE_DIR=$work/triton PYTHONPATH=.:llm:$SITE${PYTHONPATH:+:$PYTHONPATH}
[ "$GPU_CHECK_DEVICE" = cpu ] && export TRITON_INTERPRET=1

say() { echo "$*" | tee -a "$log"; }
run() { "$PY" -m benchmarks.gpu_check "$@"; }
now() { date +%s.%N; }

# step NAME CAP COMMAND...: at most CAP seconds and what is left; its exit code and time go into the summary
step() {
  local name=$1 cap=$2 start rc left=$((BUDGET_S - SECONDS - 8)); shift 2
  [ "$cap" -gt "$left" ] && cap=$left
  if [ "$cap" -lt 12 ]; then say "== $name: skipped, $left s left"; printf '%s\t-1\t0\n' "$name" >>"$work/steps.tsv"; return; fi
  say "== $name, at most $cap s, $SECONDS s gone"
  start=$(now)
  GPU_CHECK_STEP_S=$((cap - 4)) timeout -k 3 "$cap" "$@" 2>&1 | tee -a "$work/$name.log" | tee -a "$log"
  rc=${PIPESTATUS[0]}
  printf '%s\t%s\t%s\n' "$name" "$rc" "$(echo "$(now) $start" | awk '{print $1 - $2}')" >>"$work/steps.tsv"
  say "== $name: exit $rc"
  run summary >/dev/null 2>>"$log"  # so that a kill loses nothing
}

wanted() { case " $STEPS " in *" $1 "*) return 0 ;; esac; return 1; }

tests() {
  OMP_NUM_THREADS=2 "$PY" -m pytest -n "${GPU_CHECK_WORKERS:-10}" --durations=5 -p no:cacheprovider -p no:benchmark \
    tests/llm/test_kernels.py tests/llm/test_bench_head.py ${GPU_CHECK_TESTS:-}
}
counters() {
  local ncu; ncu=$(command -v ncu || ls /opt/nvidia/nsight-compute/*/ncu 2>/dev/null | tail -1)
  [ -n "$ncu" ] || { echo "no ncu here"; return 0; }
  "$ncu" --clock-control none -k 'regex:_row_sums|_gradient' -c 3 --section SpeedOfLight --section Occupancy \
    --section LaunchStats --section WarpStateStats --section SchedulerStats --section MemoryWorkloadAnalysis \
    --csv --log-file "$OUT/ncu.csv" "$PY" -m benchmarks.gpu_check one
  grep -E 'Duration|DRAM Throughput|Compute \(SM\) Throughput|Registers Per|Achieved Occ|Issued Warp|L2 Hit' "$OUT/ncu.csv" \
    | awk -F'","' '{print $5, "|", $13, "|", $14, $15}' | cut -c1-160
}
export -f tests counters; export PY

if [ -n "$WHEELS" ] && [ -d "$WHEELS" ]; then
  # shellcheck disable=SC2086
  step wheels 60 "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" $WHEELS/*.whl
fi
[ "$GPU_CHECK_DEVICE" = cpu ] || nvidia-smi 2>&1 | tee -a "$log"
wanted env && step env 60 "$PY" -m benchmarks.gpu_check env
if [ "$GPU_CHECK_DEVICE" != cpu ] && ! "$PY" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  say "no GPU is seen by torch: nothing else is worth running"; exit 3
fi
wanted smoke && step smoke 60 "$PY" -m benchmarks.gpu_check smoke
if wanted checks; then  # nothing here is timed: tests, training and the compilation for what follows share the card
  (step tests "${GPU_CHECK_TESTS_S:-150}" bash -c tests) & a=$!
  (step train "${GPU_CHECK_TRAIN_S:-150}" "$PY" -m benchmarks.gpu_check train) & b=$!
  (step compile 90 "$PY" -m benchmarks.gpu_check compile) & c=$!
  wait $a $b $c
  cp "$work/tests.log" "$OUT/tests.log" 2>/dev/null
fi
wanted quick && step quick 60 "$PY" -m benchmarks.gpu_check quick
wanted kernels && step kernels 75 "$PY" -m benchmarks.gpu_check kernels
wanted full && step full 120 "$PY" -m benchmarks.gpu_check full
wanted step && step step 100 "$PY" -m benchmarks.gpu_check step
wanted profile && step profile 40 "$PY" -m benchmarks.gpu_check profile
wanted tiles && step tiles 60 "$PY" -m benchmarks.gpu_check tiles
if wanted ncu && [ "$GPU_CHECK_DEVICE" != cpu ]; then step ncu 60 bash -c counters; fi
[ -f "$work/trace.json" ] && gzip -c "$work/trace.json" >"$OUT/trace.json.gz"
[ "$(stat -c %s "$OUT/trace.json.gz" 2>/dev/null || echo 0)" -gt 15000000 ] && rm -f "$OUT/trace.json.gz"
say "== all: $SECONDS s"
run summary
