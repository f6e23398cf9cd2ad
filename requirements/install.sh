#!/usr/bin/env bash
# Makes .venv and installs this machine's lock into it. Run by the Makefile; a second run with the same locks does nothing.
#
#   install.sh            what `heed up` needs: cpu.txt, or gpu.txt where nvidia-smi answers
#   install.sh --dev      that and what tests need (dev.txt)
#   install.sh --uv-only  .venv with uv in it: enough to resolve the locks again
#
# Read from the environment: HEED_PYTHON (the Python to use), HEED_DEVICE (cpu or gpu: overrides what was found),
# HEED_REDACT (not empty: redact.txt as well),
# PIP_FIND_LINKS (folders of wheels), PIP_INDEX_URL and pip's own configuration (a mirror of PyPI).
set -euo pipefail
cd "$(dirname "$0")/.."

UV_VERSION=0.13.9
VENV=.venv
DISK_GB_CPU=6   # 3.6 GB installed, and the downloads while they are unpacked
DISK_GB_GPU=20  # CUDA's libraries alone are about 8 GB

say() { printf '  %s\n' "$*"; }
refuse() { printf 'heed: %s\n' "$*" >&2; exit 1; }

# Two `make` in one checkout would write one .venv.
exec 9<requirements/install.sh
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "another install is running in this checkout, waiting for it"
    flock 9
fi

[ "$(uname -s)" = Linux ] || refuse "vLLM has wheels for Linux only, this is $(uname -s). A Linux machine, a container or WSL works."
case "$(uname -m)" in
    x86_64 | aarch64) ;;
    *) refuse "vLLM has wheels for x86_64 and aarch64, this machine is $(uname -m)." ;;
esac

device=${HEED_DEVICE:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}
case $device in
    cpu) disk_gb=$DISK_GB_CPU ;;
    gpu) disk_gb=$DISK_GB_GPU ;;
    *) refuse "HEED_DEVICE is $device. It can be cpu or gpu." ;;
esac

# -- which Python ------------------------------------------------------------------------------------------------------

is_usable() { "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }
tag_of() { "$1" -c 'import sys; print("cp%d%d" % sys.version_info[:2])'; }

# A folder of wheels usually holds torch for one Python only: that Python is taken before the others.
is_in_find_links() {
    local folder wheel
    for folder in ${PIP_FIND_LINKS:-}; do
        for wheel in "$folder"/torch-*+cpu-"$(tag_of "$1")"-*.whl; do [ -e "$wheel" ] && return 0; done
    done
    return 1
}

find_python() {
    local candidate fallback=
    if [ -n "${HEED_PYTHON:-}" ]; then
        is_usable "$HEED_PYTHON" || refuse "HEED_PYTHON is $HEED_PYTHON, which is $("$HEED_PYTHON" --version 2>/dev/null || echo "not there"). Python 3.11 to 3.14 works."
        echo "$HEED_PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        is_usable "$candidate" || continue
        [ -z "${PIP_FIND_LINKS:-}" ] || is_in_find_links "$candidate" || { fallback=${fallback:-$candidate}; continue; }
        echo "$candidate"
        return
    done
    [ -n "$fallback" ] || refuse "Python 3.11 to 3.14 is needed, python3 is $(python3 --version 2>/dev/null || echo "not there"). Install one, or set HEED_PYTHON to one."
    echo "$fallback"
}

if ! { [ -x $VENV/bin/python ] && is_usable $VENV/bin/python && $VENV/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        refuse "$python has no venv module. On Debian and Ubuntu: apt install python3-venv. Or set HEED_PYTHON to another Python."
    say "making $VENV with $("$python" --version)"
    "$python" -m venv --clear $VENV || refuse "$VENV could not be made in $PWD, see above. It needs a writable folder."
fi

# -- uv: reads neither pip's configuration nor pip's variables, so it is told what pip knows ---------------------------

index=${PIP_INDEX_URL:-$($VENV/bin/python -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=$index; fi
if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE=$PIP_CERT; fi
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-300}  # vLLM's wheel is 300 MB

if [ "$($VENV/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != $UV_VERSION ]; then
    say "installing uv $UV_VERSION"
    $VENV/bin/python -m pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" ||
        refuse "uv could not be installed, see above. No network, or no PyPI in reach? A mirror is named by PIP_INDEX_URL, a proxy by HTTPS_PROXY."
fi
[ "${1:-}" != --uv-only ] || exit 0

# -- the locks ---------------------------------------------------------------------------------------------------------

locks=(requirements/$device.txt)
[ "${1:-}" != --dev ] || locks+=(requirements/dev.txt)
[ "${HEED_REDACT:-off}" = off ] || locks+=(requirements/redact.txt)

# Where Python is told to write no bytecode, every start of vLLM would compile 3,000 modules again (+20 s): compiled once, here.
[ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || export UV_COMPILE_BYTECODE=1

uv_install() {  # --no-deps: a lock is complete, and vLLM's own list asks for what requirements/overrides.txt leaves out
    $VENV/bin/uv pip install --python $VENV/bin/python --no-deps "$@"
}

install_from() {
    local way=$1 options=() folder lock
    case $way in
        folders) for folder in ${PIP_FIND_LINKS:-}; do options+=(--find-links "$folder"); done ;;
        pytorch) options+=(--torch-backend cpu) ;;
    esac
    for lock in "${locks[@]}"; do options+=(-r "$lock"); done
    uv_install "${options[@]}"
}

install_locks() {
    local name=$1 ways=() way
    if [ $device = gpu ]; then
        ways=(pypi)
        [ -z "${PIP_FIND_LINKS:-}" ] || ways=(folders pypi)
    else
        ways=(pytorch)
        [ -z "${PIP_FIND_LINKS:-}" ] || ways=(folders pytorch)
    fi
    for way in "${ways[@]}"; do
        case $way in
            folders) say "installing $name: PyPI and the wheels in $PIP_FIND_LINKS" ;;
            pytorch) say "installing $name: PyPI and PyTorch's index of CPU builds" ;;
            pypi) say "installing $name: PyPI" ;;
        esac
        install_from "$way" && return
        say "that way did not work, see above"
    done
    refuse "the packages could not be installed, see above. PyPI and PyTorch's index must be in reach," \
        "or PIP_FIND_LINKS must name a folder that holds $(grep -m1 -o '^torch==[^ ]*' requirements/$device.txt) for $(tag_of $VENV/bin/python)."
}

digest=$(cat "${locks[@]}" | sha256sum | cut -c1-16)
stamp=$VENV/heed-$(basename -s .txt "${locks[@]}" | paste -sd-)-$digest
if [ ! -e "$stamp" ]; then
    free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free_gb" -ge $disk_gb ] ||
        refuse "installing needs $disk_gb GB of disk, $PWD has $free_gb GB free. Free some, or clone to another disk."
    install_locks "$(basename -s .txt "${locks[@]}" | paste -sd+ | sed 's/+/ and /')"
    touch "$stamp"
fi

# Heed itself is installed as a link to this folder; again only when its entry points or dependencies may have changed.
digest=$(sha256sum pyproject.toml | cut -c1-16)
if [ ! -e $VENV/heed-self-$digest ]; then
    uv_install --quiet --no-build-isolation -e . || refuse "Heed itself could not be installed, see above."
    touch $VENV/heed-self-$digest
fi
