#!/usr/bin/env bash
# One batch run in parts: each task of a Slurm job array does one shard, on a GPU of its own where
# there are some. Without Slurm, one process for each GPU of this machine, and the merge behind.
#
#   sbatch --array=1-8 --cpus-per-task=8 --mem=40G scripts/slurm_array.sh notes.jsonl answers.jsonl -n 300
#   sbatch --array=1-8 --gres=gpu:1 scripts/slurm_array.sh notes.jsonl answers.jsonl -ngl all
#   CUDA_VISIBLE_DEVICES=0,1 scripts/slurm_array.sh notes.jsonl answers.jsonl -ngl all
#
# The same command goes on where it stopped. To do some tasks again, say how many shards there are:
#   SHARDS=8 sbatch --array=3,7 scripts/slurm_array.sh notes.jsonl answers.jsonl -n 300
# When all have ended, with the options of before:
#   MERGE=1 SHARDS=8 scripts/slurm_array.sh notes.jsonl answers.jsonl -n 300
#
# Tasks may start on different days, and some chat templates tell the date: all take that of the
# first one, which OUTPUT.date keeps, unless CAPT_LOCAL_DATE or --date says another one.
#
# Exit code: an error of a shard before a signal, a signal before 6 (records that failed), 6 before 0.
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

# The day of the first start. A link is made in one step, so all tasks read the same whole line.
date_of_run() {
    local mine
    if [ ! -s "$output.date" ]; then
        mine=$(mktemp "$output.date.XXXXXX")
        date +%F > "$mine"
        ln "$mine" "$output.date" 2>/dev/null || [ -s "$output.date" ] || cp "$mine" "$output.date"
        rm -f "$mine"
    fi
    cat "$output.date"
}

# What says how records are read and asked is for `merge`, too.
asked=()
collect() {
    while [ $# -gt 0 ]; do
        case $1 in
            --template | --system | --id-field | --input-format | --delimiter)
                asked+=("$1" "${2:?$1 has no value}")
                shift
                ;;
            --template=* | --system=* | --id-field=* | --input-format=* | --delimiter=* | --raw)
                asked+=("$1")
                ;;
        esac
        shift
    done
}

# What the merge of before ended with: 6 where a record has failed. In a text of the output each
# quote has a backslash before it, so this stands in no answer.
code_of_merged() {
    local found=0
    LC_ALL=C grep -q '"error": *{' "$output" || found=$?
    case $found in
        0)
            echo "it holds records that failed." >&2
            return 6
            ;;
        1) return 0 ;;
        *) return 2 ;;
    esac
}

merge() {
    local files=() file fresh=
    for ((i = 1; i <= shards; i++)); do files+=("$output.shard-$i-of-$shards"); done
    if [ -s "$output" ]; then
        for file in "${files[@]}"; do
            if [ ! "$output" -nt "$file" ]; then fresh=--force-new; fi
        done
        if [ -z "$fresh" ]; then
            echo "merged before; no shard has changed since." >&2
            code_of_merged
            return
        fi
    fi
    collect "$@"
    capt-local merge "${files[@]}" -o "$output" --input "$input" ${asked[@]+"${asked[@]}"} $fresh
}

rank() {
    if [ "$1" -eq 0 ]; then
        echo 0
    elif [ "$1" -eq 6 ]; then
        echo 1
    elif [ "$1" -ge 128 ]; then
        echo 2
    else
        echo 3
    fi
}

# The worse of two exit codes; see above.
worse() {
    if [ "$(rank "$2")" -gt "$(rank "$1")" ]; then echo "$2"; else echo "$1"; fi
}

if [ -n "${MERGE:-}" ]; then
    shards=${SHARDS:?say how many there are}
    merge "$@"
    exit
fi
CAPT_LOCAL_DATE=${CAPT_LOCAL_DATE:-$(date_of_run)}
export CAPT_LOCAL_DATE

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
children=() stopped=
trap 'stopped=1; kill -TERM "${children[@]}" 2>/dev/null || true' INT TERM HUP
for ((i = 1; i <= shards; i++)); do
    if [ -n "$stopped" ]; then exit 143; fi
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
    code=$(worse "$code" "$ended")
done
if [ "$code" -ne 0 ] && [ "$code" -ne 6 ]; then exit "$code"; fi
merge "$@"
exit "$code"
