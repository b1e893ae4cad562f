# Sourced by the launchers. PYTHON defaults to that of the active environment, else to that of .venv.
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$here/../.venv/bin/python" ]; then
    PYTHON=$here/../.venv/bin/python
  fi
fi
