# Sourced by the launchers: PYTHON as given, else that of the active environment, else that of .venv.
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python
  if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$here/../.venv/bin/python" ]; then
    PYTHON=$here/../.venv/bin/python
  fi
fi
