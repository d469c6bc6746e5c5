# What the demonstrations have in common: examples/<name>/demo.sh sources this, defines main and ends with `demo "$@"`.
#
# What they write goes to a temporary folder, $work, which goes away with the processes they start; --keep leaves it there.
# They listen on the ports of their README. Where one is in use already, and for all of them with --free-ports, a free one
# takes its place, and the commands shown say which. PYTHON names the interpreter; otherwise it is .venv/bin/python, made
# by make when it is missing. Exit status 0: what was to be shown has been shown, and checked.
set -euo pipefail

readonly START_TIMEOUT_S=30   # one process on a busy machine, until it listens
readonly COMMAND_TIMEOUT_S=30 # one command; they take less than a second
readonly STOP_TIMEOUT_S=30    # the gateway gives what is under way 20 s
readonly LOG_LINES=30         # of each log, shown after a failure

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=
keep=
free_ports=
python=
orthanc_plugins= # as a JSON list has them
declare -A processes=() # by name: the process ID

demo() {
    trap finish EXIT
    while [ $# -gt 0 ]; do
        case $1 in
            --keep) keep=yes ;;
            --free-ports) free_ports=yes ;;
            -h | --help) usage && return ;;
            *) fail "unknown argument $1; there are --keep and --free-ports" ;;
        esac
        shift
    done
    trap 'exit 130' INT
    trap 'exit 143' TERM
    work=$(mktemp -d "${TMPDIR:-/tmp}/harmony-demo.XXXXXX")
    mkdir "$work/bin"
    PATH=$work/bin:$PATH
    need timeout
    find_python
    cd "$root"
    export ORTHANC_HOST=localhost DEST_HOST=127.0.0.1 # no others than those that are started here
    main
    printf '\ndemo passed\n'
}

# The comment on top of the script.
usage() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"; }

# Programs

need() {
    local program
    for program; do
        command -v "$program" >/dev/null || fail "$program is not installed"
    done
}

# need_dcmtk NAME...: an activated environment with pynetdicom has others of the same names in front.
need_dcmtk() {
    local program
    for program; do
        ln -s "$(dcmtk "$program")" "$work/bin/$program"
    done
}

dcmtk() {
    local path
    while read -r path; do
        case $("$path" --version 2>/dev/null || true) in
            *'$dcmtk'*) echo "$path" && return ;;
        esac
    done < <(type -ap "$1")
    fail "$1 of DCMTK is not installed"
}

find_python() {
    python=${PYTHON:-$root/.venv/bin/python}
    if [ -z "${PYTHON:-}" ] && [ ! -x "$python" ]; then
        step "Install what Harmony needs into .venv, once"
        need make
        make --no-print-directory -C "$root" .venv/.run-installed || fail "make could not install it"
    fi
    command -v "$python" >/dev/null || fail "no Python at $python"
    case $python in
        */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; # we are about to change the folder
    esac
    "$python" -c 'import h11, msgspec, prometheus_client, pydicom, re2, zstandard' 2>/dev/null ||
        fail "$python lacks what Harmony needs; 'make run' in $root installs it into .venv"
}

# ports NAME=PORT...: sets and exports each NAME. A NAME that is set already says which port is wanted.
ports() {
    local each name port wanted=() chosen=()
    for each; do
        name=${each%%=*}
        wanted+=("${!name:-${each#*=}}")
    done
    # Free ones are below those that connections are given (Linux: from 32768), so that none is lost to a connection.
    read -ra chosen < <("$python" -c 'import random, socket, sys

def listen(port):
    try:
        return socket.create_server(("", port))
    except OSError:
        return None

any_port, *wanted = sys.argv[1:]
held = []
for port in wanted:
    taken = None if any_port else listen(int(port))
    while taken is None:
        taken = listen(random.randrange(20000, 32000))
    held.append(taken)
print(*(each.getsockname()[1] for each in held))' "$free_ports" "${wanted[@]}")
    for each; do
        name=${each%%=*}
        port=${chosen[0]}
        if [ -z "$free_ports" ] && [ "$port" != "${wanted[0]}" ]; then
            say "port ${wanted[0]} is in use; $port takes its place"
        fi
        export "$name=$port"
        chosen=("${chosen[@]:1}")
        wanted=("${wanted[@]:1}")
    done
}

# Processes

# start_harmony NAME CONFIGURATION [NAME=VALUE...]: until it says that it runs
start_harmony() {
    local name=$1 configuration=$2
    shift 2
    say "\$ $(shown "$python") -m harmony --config $configuration"
    env HARMONY_STORAGE="$work/$name" HARMONY_DICOM_ADDRESS=127.0.0.1 "$@" \
        "$python" -m harmony --config "$configuration" >"$work/$name.log" 2>&1 &
    processes[$name]=$!
    wait_until "$START_TIMEOUT_S" greeted "$name" || fail "$name did not start"
}

# start NAME PORT COMMAND...: until it listens
start() {
    local name=$1 port=$2
    shift 2
    say "\$ $(shown "$@")"
    "$@" >"$work/$name.log" 2>&1 &
    processes[$name]=$!
    wait_until "$START_TIMEOUT_S" listening "$name" "$port" || fail "$name did not start"
}

# find_orthanc_plugin NAME: Orthanc is started with it
find_orthanc_plugin() {
    local path
    for path in {/usr/share,/usr/local/share}/orthanc/plugins/lib"$1".so*; do
        if [ -e "$path" ]; then orthanc_plugins=\"$path\" && return; fi
    done
    fail "the plugin $1 of Orthanc is not installed"
}

# start_orthanc NAME=AE_TITLE:PORT...: an empty one on $ORTHANC_PORT and $ORTHANC_HTTP_PORT, which knows these
start_orthanc() {
    local each modality modalities= program
    program=$(PATH=$PATH:/usr/sbin:/usr/local/sbin command -v Orthanc) || fail "Orthanc is not installed"
    for each; do
        modality=${each#*=}
        modalities+="${modalities:+, }\"${each%%=*}\": [\"${modality%:*}\", \"127.0.0.1\", ${modality##*:}]"
    done
    mkdir "$work/orthanc"
    cat >"$work/orthanc.json" <<END
{
  "DicomAet": "ORTHANC",
  "DicomPort": $ORTHANC_PORT,
  "HttpPort": $ORTHANC_HTTP_PORT,
  "DicomModalities": {$modalities},
  "Plugins": [$orthanc_plugins],
  "DicomAlwaysAllowFind": true,
  "DicomAlwaysAllowGet": true,
  "DicomAlwaysAllowMove": true,
  "AuthenticationEnabled": false,
  "RemoteAccessAllowed": false,
  "StorageDirectory": "$work/orthanc",
  "IndexDirectory": "$work/orthanc"
}
END
    start orthanc "$ORTHANC_PORT" "$program" "$work/orthanc.json"
    wait_until "$START_TIMEOUT_S" listening orthanc "$ORTHANC_HTTP_PORT" || fail "orthanc serves no HTTP"
}

# 0: yes, 1: not yet, 2: it is gone
greeted() { grep -qs '^Harmony ' "$work/$1.log" || running "$1"; }
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$2") 2>/dev/null || running "$1"; }
running() { if kill -0 "${processes[$1]}" 2>/dev/null; then return 1; else return 2; fi; }

# wait_until SECONDS COMMAND...: tries until the command succeeds; gives up when time is over or it returns 2.
wait_until() {
    local deadline=$((SECONDS + $1)) status
    shift
    while :; do
        status=0
        "$@" || status=$?
        if [ "$status" -eq 0 ]; then return 0; fi
        if [ "$status" -eq 2 ] || [ "$SECONDS" -ge "$deadline" ]; then return 1; fi
        sleep 0.05
    done
}

# stop NAME: asks the process to, waits, and wants exit status 0
stop() {
    local status=0 pid=${processes[$1]}
    kill -TERM "$pid" 2>/dev/null || true
    wait_until "$STOP_TIMEOUT_S" gone "$pid" || fail "the $1 did not stop within $STOP_TIMEOUT_S s"
    unset "processes[$1]"
    wait "$pid" || status=$?
    [ "$status" -eq 0 ] || fail "the $1 stopped with exit status $status"
    say "$1: exit status 0"
}

# kill_now NAME: Orthanc takes seconds to say goodbye
kill_now() {
    kill -KILL "${processes[$1]}"
    wait "${processes[$1]}" 2>/dev/null || true
    unset "processes[$1]"
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# What is done and checked

step() { printf '\n== %s\n' "$1"; }
say() { printf '   %s\n' "$1"; }

# Shows the command; its output only when it fails.
run() {
    say "\$ $(shown "$@")"
    timeout --foreground "$COMMAND_TIMEOUT_S" "$@" >"$work/last-output" 2>&1 || fail "exit status $? of: $(shown "$@")"
}

# run_in FOLDER COMMAND...: in a new folder
run_in() {
    local folder=$1
    shift
    say "\$ mkdir $(shown "$folder"); cd $(shown "$folder")"
    mkdir "$folder"
    cd "$folder"
    run "$@"
    cd "$root"
}

# http STATUS CURL_ARGUMENT...: the answer must have that status; it is in $work/last-output then, its headers in
# $work/last-headers
http() {
    local expected=$1 status
    shift
    say "\$ curl $(shown "$@")"
    rm -f "$work/last-output"
    status=$(curl --silent --show-error --noproxy '*' --max-time "$COMMAND_TIMEOUT_S" --output "$work/last-output" \
        --dump-header "$work/last-headers" --write-out '%{http_code}' "$@" 2>"$work/curl.log") || fail "no answer from: curl $(shown "$@")"
    [ "$status" = "$expected" ] || fail "answered $status, expected $expected: curl $(shown "$@")"
}

# header NAME: its value in the last answer
header() { tr -d '\r' <"$work/last-headers" | sed -n "s/^$1: //Ip"; }

# The words as one would type them, from the root of the project.
shown() {
    local word words=
    for word; do
        word=${word//"$work"/\$work}
        word=${word//"$root"\//}
        case $word in
            '' | *[!A-Za-z0-9_./:,=@%+\$-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        words+="${words:+ }$word"
    done
    printf '%s' "$words"
}

# expect WHAT ACTUAL EXPECTED
expect() {
    [ "$2" = "$3" ] || fail "$1: ${2:-nothing}, expected: $3"
    say "$1: $2"
}

# json EXPRESSION [FILE]: the value of a Python expression of `it`, which is the last output or the file; *list: of many
json() {
    "$python" -c 'import json, sys
it = json.load(sys.stdin)
print(*eval("(" + sys.argv[1] + ",)"))' "$1" <"${2:-$work/last-output}"
}

# The values of an attribute in what a program of DCMTK printed last: values GGGG,EEEE
values() {
    tr -d '\0' <"$work/last-output" | # UIDs are padded with it
        sed -n "s/^.*($1) [A-Z][A-Z] \[\([^]]*[^] ]\) *\].*/\1/p" | LC_ALL=C sort | paste -sd' '
}

# How many lines of the last output match: matches EXTENDED_REGULAR_EXPRESSION
matches() { grep -cE -- "$1" "$work/last-output" || true; }

# make_study FOLDER [OPTION...]: 5 images in 2 series; $study is its Study Instance UID
make_study() {
    run "$python" examples/study.py make "$@"
    study=$(cat "$work/last-output")
}

# same_as_sent FOLDER_SENT RECEIVED: every data set, byte by byte
same_as_sent() {
    run "$python" examples/study.py check "$1" "$2"
    say "$(tail -n 1 "$work/last-output")"
}

# Envelopes

# download URL FILE
download() {
    say "\$ curl '$1'"
    fetch "$1" "$2" || fail "nothing from $1"
}

# fetch URL FILE: anything but success is a failure, and leaves no file
fetch() {
    rm -f "$2"
    curl --silent --show-error --fail --noproxy '*' --max-time "$COMMAND_TIMEOUT_S" \
        -H 'Accept: application/zip, application/json' --output "$2" "$1" 2>"$work/last-output"
}

# unpack ENVELOPE FOLDER: with a test of the archive, and of all hashes in it
unpack() {
    run unzip -t "$1"
    run unzip -q "$1" -d "$2"
    (cd "$2" && find . -type f | LC_ALL=C sort | sed 's|^\./|     |')
    check_hashes "$2/payload"
}

# files.json lists every file of the payload but itself, each with its SHA-256.
check_hashes() {
    json '"\n".join(each["hash"] + "  " + each["file"] for each in it)' "$1/files.json" | LC_ALL=C sort >"$1.sums"
    (cd "$1" && find . -type f ! -name files.json -exec sha256sum {} + | sed 's| \./| |' | LC_ALL=C sort) >"$1.recomputed"
    expect "files in files.json" "$(wc -l <"$1.sums")" 6
    run cmp "$1.sums" "$1.recomputed"
    say "all hashes of files.json are right"
}

# The end

fail() {
    printf '\n%s\n' "$1" >&2
    exit 1
}

finish() {
    local status=$? pid log
    trap '' INT TERM
    for pid in "${processes[@]}"; do
        kill -KILL "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if [ "$status" -ne 0 ] && [ -n "$work" ]; then
        for log in "$work"/last-output "$work"/*.log "$work"/*/harmony_*.log; do
            if [ -s "$log" ]; then
                printf '\n--- %s, the last lines\n' "${log#"$work"/}"
                tail -n "$LOG_LINES" "$log"
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
