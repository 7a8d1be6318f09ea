#!/usr/bin/env bash
# Runs the tests of devices, after installing what they need on a bare Debian or Ubuntu machine.
#
#   scripts/test-devices.sh [PYTHON] [PYTEST ARGUMENT ...]
#
# Installs only missing packages, with apt, npm and pip. Without the permission to install, it lists
# the missing packages and stops. The emulated ARM systems and web runtimes are stored in the user's
# cache folder (see `renormlite device setup --help`).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
shift || true

# Program to its Debian package.
declare -A packages=(
  [chromium]=chromium [sshd]=openssh-server [ssh]=openssh-client [adb]=adb [npm]=npm
  [ps]=procps [dpkg-deb]=dpkg
)
PATH=$PATH:/usr/sbin
missing=() absent=()
for program in "${!packages[@]}"; do
  command -v "$program" >/dev/null || { absent+=("$program"); missing+=("${packages[$program]}"); }
done
if ((${#missing[@]})); then
  root=()
  ((EUID == 0)) || root=(sudo -n)
  if ! command -v apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then
    echo "The tests of devices need ${absent[*]}; on Debian and Ubuntu:" \
      "sudo apt-get install ${missing[*]}" >&2
    exit 2
  fi
  echo "installing: ${missing[*]}"
  "${root[@]}" apt-get update --quiet --quiet
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

# Python packages that the tests need in addition to the development environment.
need() { # MODULE PIP-ARGUMENT ...
  local module=$1
  shift
  "$python" -c "import $module" 2>/dev/null && return
  echo "installing: $*"
  "$python" -m pip install --quiet --disable-pip-version-check "$@"
}
need playwright 'playwright>=1.55'
need tflite_micro --pre tflite-micro

"$python" -m renormlite device setup qemu-aarch64 qemu-armv7 browser
"$python" -m renormlite targets
# One process runs all tests of a file, because they share fixtures.
exec "$python" -m pytest -n 2 --dist loadfile -m devices tests/devices "$@"
