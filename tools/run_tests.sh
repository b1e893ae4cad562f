#!/usr/bin/env bash
# usage: tools/run_tests.sh [PYTEST OPTION ...]
# Sets up .venv, then runs the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
python3 tools/setup_env.py
[ ! -e .venv/mmhpvit-cpu-only ] || export CUDA_VISIBLE_DEVICES=
exec .venv/bin/python -m pytest "$@"
