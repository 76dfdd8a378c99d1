#!/usr/bin/env bash
# One batch run in parts: each task of a Slurm job array does one shard, on a GPU of its own where
# there are some. Without Slurm, one process for each GPU of this machine.
#
#   sbatch --array=1-8 --cpus-per-task=8 --mem=40G scripts/slurm_array.sh notes.jsonl answers.jsonl -n 300
#   sbatch --array=1-8 --gres=gpu:1 scripts/slurm_array.sh notes.jsonl answers.jsonl -ngl all
#   CUDA_VISIBLE_DEVICES=0,1 scripts/slurm_array.sh notes.jsonl answers.jsonl -ngl all
#
# The same command goes on where it stopped. To do some tasks again, say how many shards there are:
#   SHARDS=8 sbatch --array=3,7 scripts/slurm_array.sh notes.jsonl answers.jsonl -n 300
# When all have ended:
#   capt-local merge answers.jsonl.shard-*-of-8 -o answers.jsonl --input notes.jsonl
#
# Tasks may start on different days, and some chat templates tell the date: all take that of the
# input file, unless CAPT_LOCAL_DATE or --date says another one.
#
# The log of a task holds counts and no text. Put outputs where only you may read them.
#
#SBATCH --job-name=capt-local
#SBATCH --output=capt-local-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail
umask 077

if [ $# -lt 2 ]; then
    echo "usage: $0 INPUT OUTPUT [OPTIONS of capt-local batch]" >&2
    exit 2
fi
input=$1 output=$2
shift 2
export CAPT_LOCAL_DATE=${CAPT_LOCAL_DATE:-$(date -r "$input" +%F)}

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    shards=${SHARDS:-$SLURM_ARRAY_TASK_COUNT}
    # Not one more than the cores of this task: threads that wait for each other are slow.
    threads=${SLURM_CPUS_PER_TASK:+-t $SLURM_CPUS_PER_TASK}
    # In the place of this shell, so that Slurm's signal reaches it and it can leave in good order.
    # shellcheck disable=SC2086
    exec capt-local batch "$input" -o "$output.shard-$SLURM_ARRAY_TASK_ID-of-$shards" \
        --shard "$SLURM_ARRAY_TASK_ID/$shards" $threads "$@"
fi

IFS=, read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:?name the GPUs, as in CUDA_VISIBLE_DEVICES=0,1}"
shards=${#gpus[@]}
children=()
trap 'kill -TERM "${children[@]}" 2>/dev/null' INT TERM HUP
for ((i = 1; i <= shards; i++)); do
    CUDA_VISIBLE_DEVICES=${gpus[i - 1]} capt-local batch "$input" \
        -o "$output.shard-$i-of-$shards" --shard "$i/$shards" "$@" < /dev/null &
    children+=($!)
done
code=0
for child in "${children[@]}"; do
    # A signal ends `wait` before the child has ended.
    while true; do
        ended=0
        wait "$child" || ended=$?
        kill -0 "$child" 2>/dev/null || break
    done
    if [ "$ended" -ne 0 ]; then code=$ended; fi
done
if [ "$code" -ne 0 ] && [ "$code" -ne 6 ]; then exit "$code"; fi
files=()
for ((i = 1; i <= shards; i++)); do files+=("$output.shard-$i-of-$shards"); done
capt-local merge "${files[@]}" -o "$output" --input "$input"
exit "$code"
