#!/usr/bin/env bash
# usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [OPTION ...]
# Runs one process a GPU through torchrun; without a GPU, GPUS processes with gloo.
# For several machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
set -euo pipefail
[ $# -ge 3 ] || { sed -n 2,4p "$0" | cut -c3- >&2; exit 2; }
CONFIG=$1 CHECKPOINT=$2 GPUS=$3; shift 3
here=$(cd "$(dirname "$0")" && pwd)
. "$here/pick_python.sh"

exec "$PYTHON" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$GPUS" \
  "$here/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
