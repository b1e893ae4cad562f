#!/usr/bin/env bash
# usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [OPTION ...]
# Environment: GPUS (processes; 8), GPUS_PER_NODE (8), CPUS_PER_TASK (5), MASTER_PORT, GRES (gpu:GPUS_PER_NODE;
# empty for machines without GPUs), and SRUN_ARGS for srun.
set -euo pipefail
[ $# -ge 4 ] || { sed -n 2,4p "$0" | cut -c3- >&2; exit 2; }
PARTITION=$1 JOB_NAME=$2 CONFIG=$3 WORK_DIR=$4; shift 4
here=$(cd "$(dirname "$0")" && pwd)
. "$here/pick_python.sh"
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
# Jobs that share a machine must not share a port.
export MASTER_PORT=${MASTER_PORT:-$((29500 + ${SLURM_JOB_ID:-$$} % 1000))}
GRES=${GRES-gpu:$GPUS_PER_NODE}
read -ra srun_args <<< "${GRES:+--gres=$GRES} ${SRUN_ARGS:-}"

exec srun --partition="$PARTITION" --job-name="$JOB_NAME" \
  --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
  --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 "${srun_args[@]}" \
  "$PYTHON" -u "$here/train.py" "$CONFIG" --work-dir "$WORK_DIR" --launcher slurm "$@"
