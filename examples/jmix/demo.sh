#!/usr/bin/env bash
# A study of a PACS as a JMIX envelope, with real programs, on this machine:
#
#   examples/jmix/demo.sh [--keep] [--free-ports]
#
# Starts Orthanc and the gateway of config.toml on the loopback interface; sends Orthanc two studies with DCMTK; asks the
# gateway for one of them with curl, has it prepare the other one; checks the envelopes with unzip, sha256sum and Python's
# zipfile.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

main() {
    need curl unzip cmp sha256sum
    need_dcmtk storescu
    ports HARMONY_HTTP_PORT=8084 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042
    api=http://127.0.0.1:$HARMONY_HTTP_PORT/jmix/api/jmix

    step "A PACS with two studies, and the gateway"
    start_orthanc
    start_harmony gateway examples/jmix/config.toml
    make_study "$work/first"
    first=$study
    make_study "$work/second"
    second=$study
    run storescu -aec ORTHANC --scan-directories --recurse 127.0.0.1 "$ORTHANC_PORT" "$work/first" "$work/second"

    step "A study: it is retrieved, packed and served"
    download "$api?studyInstanceUid=$first" "$work/first.zip"
    unpack "$work/first.zip" "$work/first-content"
    same_as_sent "$work/first" "$work/first.zip"

    step "Its manifest, and the envelope again, by its id"
    id=$(json 'it["id"]' "$work/first-content/manifest.json")
    download "$api/$id/manifest" "$work/manifest.json"
    run cmp "$work/manifest.json" "$work/first-content/manifest.json"
    download "$api/$id" "$work/first-again.zip"
    run cmp "$work/first.zip" "$work/first-again.zip"

    step "Another study, prepared before somebody asks for it"
    http 201 "$api/prime/$second"
    id=$(json 'it["id"]')
    expect "status" "$(json 'it["status"]')" created
    http 200 "$api/prime/$second"
    expect "status" "$(json 'it["status"]')" ready

    step "A study that the PACS does not have"
    http 404 "$api?studyInstanceUid=1.2.3"
    say "$(cat "$work/last-output")"

    step "From here on the PACS is not needed"
    kill_now orthanc
    download "$api?studyInstanceUid=$second" "$work/second.zip"
    unpack "$work/second.zip" "$work/second-content"
    same_as_sent "$work/second" "$work/second.zip"
    expect "id" "$(json 'it["id"]' "$work/second-content/manifest.json")" "$id"

    step "But for a study that has no envelope; and requests without meaning"
    http 502 "$api?studyInstanceUid=1.2.3"
    say "$(cat "$work/last-output")"
    http 400 "$api"
    say "$(cat "$work/last-output")"
    http 405 -X DELETE "$api/$id"
    stop gateway
}

demo "$@"
