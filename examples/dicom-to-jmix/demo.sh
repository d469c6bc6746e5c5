#!/usr/bin/env bash
# From C-STORE to an envelope at the upstream, with real programs, on this machine:
#
#   examples/dicom-to-jmix/demo.sh [--keep] [--free-ports]
#
# Starts the gateway of config.toml and the upstream of upstream.toml on the loopback interface, sends two studies with
# DCMTK, waits until both are upstream, and checks what arrived with curl, unzip, sha256sum and Python's zipfile.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

readonly ARRIVAL_TIMEOUT_S=30 # one envelope: build, upload

main() {
    need curl unzip cmp sha256sum
    need_dcmtk echoscu storescu

    step "Two processes: the gateway and its upstream"
    ports HARMONY_DICOM_PORT=11113 HARMONY_HTTP_PORT=8086 JMIX_PORT=9998
    start_harmony upstream examples/dicom-to-jmix/upstream.toml JMIX_STORAGE="$work/upstream"
    start_harmony gateway examples/dicom-to-jmix/config.toml JMIX_HOST=127.0.0.1 JMIX_PROTOCOL=http
    here=http://127.0.0.1:$HARMONY_HTTP_PORT/jmix/api/jmix
    there=http://127.0.0.1:$JMIX_PORT/api/jmix
    say "DICOM     127.0.0.1:$HARMONY_DICOM_PORT, AE title JMIX_RECEIVER"
    say "envelopes $here"
    say "upstream  $there"

    step "C-ECHO"
    run echoscu -aec JMIX_RECEIVER 127.0.0.1 "$HARMONY_DICOM_PORT"
    say "answered"

    step "C-STORE of a study, file by file"
    make_study "$work/first"
    run storescu -aec JMIX_RECEIVER -aet MY_MODALITY 127.0.0.1 "$HARMONY_DICOM_PORT" \
        "$work"/first/series-1/*.dcm "$work"/first/series-2/*.dcm
    say "success, five times"
    follow "$work/first"

    step "C-STORE of another study, as a folder"
    make_study "$work/second"
    run storescu -aec JMIX_RECEIVER -aet MY_MODALITY --scan-directories --recurse \
        127.0.0.1 "$HARMONY_DICOM_PORT" "$work/second"
    say "success, five times"
    follow "$work/second"

    step "Stop both processes"
    stop gateway
    stop upstream
}

# $study, from the upstream's answer to its bytes: follow FOLDER_SENT
follow() {
    local sent=$1 envelope=$1-envelope id
    mkdir "$envelope"

    step "Ask the upstream for the study until it is there"
    say "\$ curl '$there?studyInstanceUid=$study'"
    wait_until "$ARRIVAL_TIMEOUT_S" fetch "$there?studyInstanceUid=$study" "$envelope/by-study.zip" ||
        fail "the study is not at the upstream, after $ARRIVAL_TIMEOUT_S s"
    id=$(unzip -p "$envelope/by-study.zip" manifest.json | json 'it["id"]' /dev/stdin) || fail "its manifest has no id"
    say "envelope $id, $(wc -c <"$envelope/by-study.zip") bytes"

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
    unpack "$envelope/there.zip" "$envelope/content"
    run cmp "$envelope/content/manifest.json" "$envelope/manifest-there.json"
    same_as_sent "$sent" "$envelope/there.zip"
}

demo "$@"
