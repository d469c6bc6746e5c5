#!/usr/bin/env bash
# From C-STORE to an envelope at the upstream, with real programs, on this machine:
#
#   examples/dicom-to-jmix/demo.sh [--keep]
#
# Starts the gateway of config.toml and the upstream of upstream.toml on free ports of the loopback interface, sends two
# studies with DCMTK, waits until both are upstream, and checks what arrived with curl, unzip, sha256sum and Python's
# zipfile. Everything is written to a temporary folder, which goes away with the processes; --keep leaves it there.
# Runs from any folder. PYTHON names the interpreter; otherwise .venv/bin/python, then python3. Exit status 0: passed.
set -euo pipefail

readonly START_TIMEOUT_S=30   # one process on a busy machine, until its ports accept connections
readonly ARRIVAL_TIMEOUT_S=30 # one envelope: build, upload
readonly STOP_TIMEOUT_S=30    # the gateway gives what is under way 20 s
readonly LOG_LINES=30         # of each log, shown after a failure

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
example=$root/examples/dicom-to-jmix
work=
keep=
gateway=
upstream=
study=

main() {
    trap finish EXIT
    case ${1-} in
        '') ;;
        --keep) keep=yes ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && return ;;
        *) fail "unknown argument $1; there is only --keep" ;;
    esac
    trap 'exit 130' INT
    trap 'exit 143' TERM
    find_programs
    work=$(mktemp -d "${TMPDIR:-/tmp}/harmony-demo.XXXXXX")
    cd "$root"

    step "Two processes: the gateway and its upstream"
    start_upstream
    start_gateway
    here=http://127.0.0.1:$http_port/jmix/api/jmix
    there=http://127.0.0.1:$jmix_port/api/jmix
    say "DICOM     127.0.0.1:$dicom_port, AE title JMIX_RECEIVER"
    say "envelopes $here"
    say "upstream  $there"

    step "C-ECHO"
    run "$echoscu" -to 10 -aet DEMO -aec JMIX_RECEIVER 127.0.0.1 "$dicom_port"
    say "answered"

    step "C-STORE of a study, file by file"
    make_study "$work/first"
    run "$storescu" -to 10 -aet DEMO -aec JMIX_RECEIVER 127.0.0.1 "$dicom_port" \
        "$work"/first/series-1/*.dcm "$work"/first/series-2/*.dcm
    say "success, five times"
    follow "$work/first"

    step "C-STORE of another study, as a folder"
    make_study "$work/second"
    run "$storescu" -to 10 -aet DEMO -aec JMIX_RECEIVER --scan-directories --recurse \
        127.0.0.1 "$dicom_port" "$work/second"
    say "success, five times"
    follow "$work/second"

    step "Stop both processes"
    stop gateway "$gateway"
    gateway=
    stop upstream "$upstream"
    upstream=
    printf '\ndemo passed\n'
}

make_study() {
    run "$python" "$example/study.py" make "$1"
    study=$(cat "$work/last-output")
}

# $study, from the upstream's answer to its bytes: follow FOLDER_SENT
follow() {
    local sent=$1 envelope=$1-envelope id
    mkdir "$envelope"

    step "Ask the upstream for the study until it is there"
    say "\$ curl '$there?studyInstanceUid=$study'"
    wait_until "$ARRIVAL_TIMEOUT_S" fetch "$there?studyInstanceUid=$study" "$envelope/by-study.zip" ||
        fail "the study is not at the upstream, after $ARRIVAL_TIMEOUT_S s"
    id=$(unzip -p "$envelope/by-study.zip" manifest.json | value id) || fail "its manifest has no id"
    say "envelope $id, $(bytes "$envelope/by-study.zip") bytes"

    step "Fetch it by its id, here and there"
    download "$here/$id/manifest" "$envelope/manifest-here.json"
    download "$there/$id/manifest" "$envelope/manifest-there.json"
    download "$here/$id" "$envelope/here.zip"
    download "$there/$id" "$envelope/there.zip"
    run cmp "$envelope/manifest-here.json" "$envelope/manifest-there.json"
    run cmp "$envelope/here.zip" "$envelope/there.zip"
    run cmp "$envelope/here.zip" "$envelope/by-study.zip"
    say "gateway and upstream give the same bytes"

    step "Look into it"
    run unzip -t "$envelope/there.zip"
    run unzip -q "$envelope/there.zip" -d "$envelope/content"
    run cmp "$envelope/content/manifest.json" "$envelope/manifest-there.json"
    (cd "$envelope/content" && find . -type f | LC_ALL=C sort | sed 's|^\./|     |')
    check_hashes "$envelope/content/payload"
    run "$python" "$example/study.py" check "$sent" "$envelope/there.zip"
    say "$(tail -n 1 "$work/last-output")"
}

# files.json lists every file of the payload but itself, each with its SHA-256.
check_hashes() {
    "$python" -c 'import json, sys
for each in json.load(sys.stdin): print(each["hash"], "", each["file"])' \
        <"$1/files.json" | LC_ALL=C sort >"$1.sums"
    (cd "$1" && find . -type f ! -name files.json -exec sha256sum {} + | sed 's| \./| |' | LC_ALL=C sort) >"$1.recomputed"
    [ "$(wc -l <"$1.sums")" -eq 6 ] || fail "files.json lists $(wc -l <"$1.sums") files, expected 6"
    run cmp "$1.sums" "$1.recomputed"
    say "all 6 hashes of files.json are right"
}

find_programs() {
    local program
    for program in curl unzip cmp sha256sum; do
        command -v "$program" >/dev/null || fail "$program is not installed"
    done
    echoscu=$(dcmtk echoscu)
    storescu=$(dcmtk storescu)
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        python=$root/.venv/bin/python
        [ -x "$python" ] || python=python3
    fi
    command -v "$python" >/dev/null || fail "no Python at $python"
    case $python in
        */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; # we are about to change the folder
    esac
    "$python" -c 'import h11, msgspec, pydicom, zstandard' 2>/dev/null ||
        fail "$python lacks what Harmony needs; 'make run' in $root installs it into .venv"
}

# DCMTK's program of that name: an activated environment with pynetdicom has others in front.
dcmtk() {
    local path
    while read -r path; do
        case $("$path" --version 2>/dev/null || true) in
            *'$dcmtk'*) echo "$path" && return ;;
        esac
    done < <(type -ap "$1")
    fail "$1 of DCMTK is not installed"
}

# Between choosing a port and listening on it somebody else may take it: then once more, with another one.
start_upstream() {
    local attempt
    for attempt in 1 2 3; do
        jmix_port=$(free_ports 1)
        JMIX_PORT=$jmix_port JMIX_STORAGE=$work/upstream \
            "$python" -m harmony --config "$example/upstream.toml" >"$work/upstream.log" 2>&1 &
        upstream=$!
        if wait_until "$START_TIMEOUT_S" listening "$upstream" "$work/upstream.log" "$jmix_port"; then return; fi
        taken "$upstream" "$work/upstream.log" || break
    done
    fail "the upstream did not start, attempt $attempt"
}

start_gateway() {
    local attempt
    for attempt in 1 2 3; do
        read -r dicom_port http_port < <(free_ports 2)
        HARMONY_DICOM_ADDRESS=127.0.0.1 HARMONY_DICOM_PORT=$dicom_port HARMONY_HTTP_PORT=$http_port \
            HARMONY_STORAGE=$work/gateway JMIX_HOST=127.0.0.1 JMIX_PORT=$jmix_port JMIX_PROTOCOL=http \
            "$python" -m harmony --config "$example/config.toml" >"$work/gateway.log" 2>&1 &
        gateway=$!
        if wait_until "$START_TIMEOUT_S" listening "$gateway" "$work/gateway.log" "$dicom_port" "$http_port"; then return; fi
        taken "$gateway" "$work/gateway.log" || break
    done
    fail "the gateway did not start, attempt $attempt"
}

free_ports() {
    "$python" -c 'import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(each.getsockname()[1] for each in held))' "$1"
}

# listening PID OUTPUT PORT...: 0 when the process has said that it runs and all ports accept connections (they would
# if they were another program's, too), 2 when the process is gone, 1 when it is too early.
listening() {
    local pid=$1 output=$2 port
    shift 2
    kill -0 "$pid" 2>/dev/null || return 2
    grep -q '^Harmony ' "$output" || return 1
    for port; do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || return 1
    done
}

taken() { ! kill -0 "$1" 2>/dev/null && grep -q 'cannot start:.*in use' "$2"; }

# wait_until SECONDS COMMAND...: tries until the command succeeds; gives up when time is over or it returns 2.
wait_until() {
    local deadline=$((SECONDS + $1)) status
    shift
    while :; do
        status=0
        "$@" || status=$?
        if [ "$status" -eq 0 ]; then return 0; fi
        if [ "$status" -eq 2 ] || [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
        sleep 0.1
    done
}

download() {
    say "\$ curl '$1'"
    fetch "$1" "$2" || fail "nothing from $1"
}

# fetch URL FILE: anything but success is a failure, and leaves no file
fetch() {
    rm -f "$2"
    curl --silent --show-error --fail --noproxy '*' --max-time 20 -H 'Accept: application/zip, application/json' \
        --output "$2" "$1" 2>"$work/last-output"
}

value() { "$python" -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }
bytes() { wc -c <"$1" | tr -d ' '; }
step() { printf '\n== %s\n' "$1"; }
say() { printf '   %s\n' "$1"; }

# Shows the command; its output only when it fails.
run() {
    local shown="${*/#"$work"/\$work}"
    say "\$ ${shown//"$root"\//}"
    "$@" >"$work/last-output" 2>&1 || fail "exit status $? of: $shown"
}

# stop NAME PID: asks it to, waits, and wants exit status 0
stop() {
    local status=0
    kill -TERM "$2"
    wait_until "$STOP_TIMEOUT_S" gone "$2" || fail "the $1 did not stop within $STOP_TIMEOUT_S s"
    wait "$2" || status=$?
    [ "$status" -eq 0 ] || fail "the $1 stopped with exit status $status"
    say "$1: exit status 0"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

fail() {
    printf '\n%s\n' "$1" >&2
    exit 1
}

finish() {
    local status=$? pid log
    trap '' INT TERM
    for pid in $gateway $upstream; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ "$status" -ne 0 ] && [ -n "$work" ]; then
        for log in last-output gateway.log gateway/harmony_dicom_to_jmix.log upstream.log; do
            if [ -s "$work/$log" ]; then
                printf '\n--- %s, the last lines\n' "$log"
                tail -n "$LOG_LINES" "$work/$log"
            fi
        done >&2
    fi
    if [ -n "$work" ] && [ -n "$keep" ]; then
        printf '\nkept: %s\n' "$work" >&2
    elif [ -n "$work" ]; then
        rm -rf "$work"
    fi
    if [ "$status" -ne 0 ]; then printf '\ndemo failed\n' >&2; fi
    exit "$status"
}

main "$@"
