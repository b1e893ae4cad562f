#!/usr/bin/env bash
# usage: tools/demo.sh [--weights FILE|timm] [OPTION ...]
# OPTION: --iters N (default 300), --train N and --val N pictures (240, 40), --data DIR, --work-dir DIR
# Sets up .venv, then trains and evaluates a small detector on generated pictures (tools/demo.py).
set -euo pipefail
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
  sed -n 's/^# //p' "$0"
  exit
fi
cd "$(dirname "$0")/.."
python3 tools/setup/setup_env.py
[ ! -e .venv/mmhpvit-cpu-only ] || export CUDA_VISIBLE_DEVICES=
exec .venv/bin/python -W ignore tools/demo.py "$@"
