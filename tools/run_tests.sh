#!/usr/bin/env bash
# usage: tools/run_tests.sh [PYTEST OPTION ...]
# Sets up .venv, then runs the tests in two processes (-n 0: in one).
set -euo pipefail
cd "$(dirname "$0")/.."
python3 tools/setup/setup_env.py
[ ! -e .venv/mmhpvit-cpu-only ] || export CUDA_VISIBLE_DEVICES=
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
