#!/usr/bin/env bash
# Make a virtual environment that holds what a lock file lists, and this package (editable).
#
#   tools/make_venv.sh VENV LOCK [--no-package]
#
# LOCK may also be a plain list of requirements, without hashes.
# Uses uv where it is on PATH, else pip, and the Python that the variable PYTHON names, else the
# oldest supported one that it finds. A virtual environment that already works is kept and brought
# up to date.
set -euo pipefail

venv=$1
lock=$2
first_minor=12 # python 3.12: pyproject.toml's requires-python
last_minor=14  # python 3.14: the newest that the locked PyMC accepts

have_uv=false
if command -v uv >/dev/null 2>&1; then have_uv=true; fi

supported() {
  # Debian ships venv without ensurepip unless python3-venv is installed; uv needs neither.
  local modules="sys, venv, ensurepip"
  if $have_uv; then modules=sys; fi
  "$1" -c "import $modules; sys.exit(not (3, $first_minor) <= sys.version_info[:2] <= (3, $last_minor))" \
    >/dev/null 2>&1
}

find_python() {
  local candidate minor names=()
  for minor in $(seq "$first_minor" "$last_minor"); do names+=("python3.$minor"); done
  names+=(python3 python)
  if [[ -n ${PYTHON:-} ]]; then names=("$PYTHON"); fi
  # pyenv's own versions come last: its shims answer only for the versions that it was told to use.
  if [[ -z ${PYTHON:-} ]] && command -v pyenv >/dev/null 2>&1; then
    for minor in $(seq "$first_minor" "$last_minor"); do
      names+=("$(pyenv root)/versions/3.$minor".*/bin/python)
    done
  fi
  for candidate in "${names[@]}"; do
    if supported "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

if ! "$venv/bin/python" -c '' >/dev/null 2>&1; then
  rm -rf "$venv"
  if python=$(find_python); then
    echo "making $venv with $python"
    if $have_uv; then uv venv --quiet --python "$python" "$venv"; else "$python" -m venv "$venv"; fi
  elif $have_uv && [[ -z ${PYTHON:-} ]]; then
    echo "making $venv with a Python 3.$first_minor that uv finds or fetches"
    uv venv --quiet --python "3.$first_minor" "$venv"
  else
    cat >&2 <<EOF
error: no usable Python found
  expected: Python 3.$first_minor to 3.$last_minor with its venv module, or uv, on PATH
  asked:    PYTHON=${PYTHON:-}
  found:    $(command -v python3 >/dev/null 2>&1 && python3 --version 2>&1 || echo "no python3")
  to do:    install one of them (on Debian and Ubuntu the package python3-venv belongs to it)
EOF
    exit 1
  fi
fi

echo "installing $lock into $venv (the first time this takes a minute or two)"
if $have_uv; then
  install=(uv pip install --quiet --python "$venv/bin/python")
else
  # uv makes environments without pip.
  "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
  install=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
fi
hashes=()
if grep -q -e --hash "$lock"; then hashes=(--require-hashes); fi
# Bash before 4.4, that of macOS, calls an empty array unset.
"${install[@]}" ${hashes[@]+"${hashes[@]}"} -r "$lock"
if [[ ${3:-} != --no-package ]]; then "${install[@]}" --no-deps --no-build-isolation -e .; fi
