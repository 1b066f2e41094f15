#!/bin/sh
# Make the project's environment: .venv with the versions of requirements.lock and this checkout, editable.
#
# Run as `make setup`; every other target does it first. When nothing has changed it returns at once and needs no
# network. A stopped run is made good by the next one. Choose another interpreter with `make setup PYTHON=<path>`.
# pip's own settings (index, proxy, certificates, cache) are left as they are.
set -eu
cd "$(dirname "$0")/.."

SUPPORTED="3.12 3.13" # 3.14: no wheel yet of the numpy that LeRobot 0.6 asks for
ENVIRONMENT=.venv
STAMP=$ENVIRONMENT/.set-up-from      # what the finished environment was made from
MARKER=$ENVIRONMENT/.set-up-running  # process id of a set-up under way, or of one that was stopped
LOG=$ENVIRONMENT/set-up.log
# Free space for a fresh install. Measured on Linux: 6.2 GB, most of it torch's CUDA libraries.
case $(uname -s) in Linux) NEEDED_GB=7 ;; *) NEEDED_GB=3 ;; esac

say() { printf '%s\n' "$*"; }
stop() {
    printf 'Set-up stopped: %s\n' "$*" >&2
    exit 1
}

# --- Nothing to do? ---------------------------------------------------------------------------------------------------

lock=$(cksum <requirements.lock)
wanted="$lock
$(cat pyproject.toml tools/setup_environment.sh | cksum)
$(pwd)"
made_from=
if [ -f "$STAMP" ]; then made_from=$(cat "$STAMP"); fi
python=$ENVIRONMENT/bin/python
environment_works() { "$python" -I -c 'import pip' </dev/null >/dev/null 2>&1; }

if [ "$made_from" = "$wanted" ] && [ ! -e "$MARKER" ] && environment_works; then
    say "Environment is ready ($ENVIRONMENT)."
    exit 0
fi

# --- Find Python ------------------------------------------------------------------------------------------------------

# Paths that might be a supported Python, one a line, best first. A name on PATH is not enough: a pyenv shim exists for
# every version and fails for those that are not selected, so all of PATH is tried and pyenv's own folder is looked into.
candidates() {
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" || true
        return
    fi
    for version in $SUPPORTED; do
        on_path "python$version"
        for root in "${PYENV_ROOT:-}" "${HOME:-}/.pyenv"; do
            for binary in "$root/versions/$version".*/bin/python; do say "$binary"; done
        done
    done
    on_path python3
    on_path python
    if command -v uv >/dev/null 2>&1; then
        for version in $SUPPORTED; do uv python find "$version" 2>/dev/null || true; done
    fi
}
on_path() {
    (
        IFS=:
        for folder in $PATH; do say "${folder:-.}/$1"; done
    )
}

# The first candidate that can run the given statements, as the interpreter's own path (not a shim, not a venv's link).
first_python_that_can() {
    candidates | while IFS= read -r candidate; do
        [ -x "$candidate" ] || continue
        "$candidate" -I -c "
import sys
assert '%d.%d' % sys.version_info[:2] in '$SUPPORTED'.split()
$1
print(getattr(sys, '_base_executable', None) or sys.executable)" </dev/null 2>/dev/null && break
    done || true
}

find_python() {
    base=$(first_python_that_can "import ensurepip, ssl, venv")
    [ -z "$base" ] || return 0
    spoken=$(echo "$SUPPORTED" | sed 's/ / or /g')
    if [ -n "${PYTHON:-}" ]; then
        stop "PYTHON=$PYTHON is not a Python $spoken with the venv module; leave PYTHON out to search, or name another."
    fi
    if command -v uv >/dev/null 2>&1; then
        say "No Python $spoken found; asking uv for one."
        if uv python install "${SUPPORTED%% *}" </dev/null; then
            base=$(first_python_that_can "import ensurepip, ssl, venv")
            [ -z "$base" ] || return 0
        fi
        stop "uv could not install Python ${SUPPORTED%% *}; check the network, or install Python $spoken, and run again."
    fi
    crippled=$(first_python_that_can "")
    if [ -n "$crippled" ]; then
        stop "$crippled lacks the venv, ensurepip or ssl module; install it (Debian and Ubuntu: the package" \
            "python${SUPPORTED%% *}-venv) and run again."
    fi
    stop "Python $spoken was not found on PATH, in pyenv or through uv; install one and run again."
}

# --- Start from nothing, or from what is there ------------------------------------------------------------------------

if [ -e "$MARKER" ]; then
    other=$(cat "$MARKER")
    if [ -n "$other" ] && [ "$other" != $$ ] && kill -0 "$other" 2>/dev/null; then
        stop "process $other is already making $ENVIRONMENT; wait for it (or delete $MARKER if it is something else)."
    fi
    say "The last set-up was stopped half-way: starting again."
    rm -rf "$ENVIRONMENT"
elif [ -n "$made_from" ]; then
    # A virtual environment cannot be moved, and dies with the Python that it was made from.
    if [ "$(tail -n 1 "$STAMP")" != "$(pwd)" ] || ! environment_works; then rm -rf "$ENVIRONMENT"; fi
elif [ -d "$ENVIRONMENT" ]; then
    rmdir "$ENVIRONMENT" 2>/dev/null || environment_works ||
        stop "$ENVIRONMENT exists, was not made by this script and does not run; move it away and run again."
fi

if [ ! -d "$ENVIRONMENT" ]; then
    find_python
    free_gb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1000000))
    if [ "$free_gb" -lt "$NEEDED_GB" ]; then
        stop "$free_gb GB are free here and about $NEEDED_GB GB are needed; make room and run again."
    fi
    say "Making $ENVIRONMENT with $base ($("$base" -c 'import platform; print(platform.python_version())'))."
    mkdir "$ENVIRONMENT" || stop "$(pwd) is not writable."
    echo $$ >"$MARKER"
    "$base" -m venv "$ENVIRONMENT" >"$LOG" 2>&1 || stop "$base could not make a virtual environment; see $LOG."
    fresh=yes
else
    echo $$ >"$MARKER"
    fresh=no
fi

# --- Install ----------------------------------------------------------------------------------------------------------

# One line that says how far pip is: rewritten in place on a terminal, printed now and then in a log file.
show_progress() {
    seconds=$(($(date +%s) - started))
    names=$(sed -n 's/^Installing collected packages: //p' "$LOG")
    if [ -n "$names" ]; then
        total=$(echo "$names" | awk -F, '{ print NF }')
        new=$(find "$ENVIRONMENT"/lib/python*/site-packages -maxdepth 1 -name '*.dist-info' -newer "$MARKER" | wc -l)
        text="installed $((new)) of $total packages"
    else
        text="collected $(grep -cE '^(Collecting|Requirement already satisfied)' "$LOG" || true) packages"
    fi
    if [ -t 1 ]; then
        printf '\r  %4d s  %-40s' "$seconds" "$text"
    elif [ "$seconds" -gt 0 ] && [ $((seconds % 15)) -eq 0 ]; then
        printf '  %4d s  %s\n' "$seconds" "$text"
    fi
}

# -I keeps PYTHONPATH (ROS sets one) out of what pip takes for installed.
pip_install() {
    started=$(date +%s)
    touch "$MARKER"
    trap interrupted HUP INT TERM
    "$python" -I -m pip install --no-input --disable-pip-version-check "$@" </dev/null >"$LOG" 2>&1 &
    pip=$!
    while kill -0 "$pip" 2>/dev/null; do
        show_progress
        sleep 1
    done
    status=0
    wait "$pip" || status=$?
    trap - HUP INT TERM
    if [ -t 1 ]; then printf '\r%60s\r' ''; fi
    [ $status -eq 0 ] || explain_pip
}

interrupted() {
    # A shell's background process does not hear Ctrl-C by itself.
    kill "$pip" 2>/dev/null || true
    wait "$pip" 2>/dev/null || true
    echo
    stop "interrupted; run again to go on."
}

explain_pip() {
    # pip collects everything before it installs anything: a failure to collect leaves a finished environment whole.
    if ! grep -q '^Installing collected packages' "$LOG" && [ $fresh = no ]; then rm -f "$MARKER"; fi
    if grep -qi 'no space left on device' "$LOG"; then
        stop "the disk is full; make room (about $NEEDED_GB GB, and pip's cache and TMPDIR count too) and run again."
    elif grep -qE 'NewConnectionError|NameResolutionError|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError' \
        "$LOG"; then
        stop "pip cannot reach its package index; check the network, proxy and certificates and run again ($LOG has" \
            "pip's words)."
    fi
    stop "pip failed: $(grep -E '^ *(ERROR|error)' "$LOG" | tail -n 1 | cut -c 1-300) ($LOG has the rest)."
}

if [ "$(printf '%s\n' "$made_from" | head -n 1)" != "$lock" ] || [ $fresh = yes ]; then
    say "Installing the packages of requirements.lock (a few minutes the first time)."
    pip_install -r requirements.lock
fi
pip_install --no-deps --no-build-isolation -e .
printf '%s\n' "$wanted" >"$STAMP"
rm -f "$MARKER"
say "Environment is ready ($ENVIRONMENT)."
