#!/usr/bin/env bash
# usage: tools/demo.sh [--weights FILE|timm] [OPTION ...]
# Sets up .venv, then trains and evaluates a small detector on pictures that it makes (tools/demo.py).
set -euo pipefail
cd "$(dirname "$0")/.."
python3 tools/setup_env.py
[ ! -e .venv/mmhpvit-cpu-only ] || export CUDA_VISIBLE_DEVICES=
exec .venv/bin/python -W ignore tools/demo.py "$@"
