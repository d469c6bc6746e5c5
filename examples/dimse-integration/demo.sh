#!/usr/bin/env bash
# DIMSE in and out of one gateway, with real programs, on this machine:
#
#   examples/dimse-integration/demo.sh [--keep] [--free-ports]
#
# Starts Orthanc and the gateway of config.toml on the loopback interface; stores a study in Orthanc with DCMTK, through
# the gateway; then finds it with curl, over HTTP, and with DCMTK, over DIMSE, and retrieves it both ways.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

main() {
    need curl
    need_dcmtk echoscu storescu findscu getscu
    ports HARMONY_HTTP_PORT=8080 HARMONY_DICOM_PORT=11112 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042

    step "A PACS and the gateway"
    start_orthanc
    start_harmony gateway examples/dimse-integration/config.toml
    make_study "$work/sent" --study-instance-uid 1.2.3.4.5 --patient-id 12345

    step "DIMSE in, DIMSE out: C-ECHO and C-STORE"
    run echoscu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT"
    say "answered"
    run storescu -aec HARMONY_SCP --scan-directories --recurse 127.0.0.1 "$HARMONY_DICOM_PORT" "$work/sent"
    http 200 "http://localhost:$ORTHANC_HTTP_PORT/statistics"
    expect "instances in Orthanc" "$(json 'it["CountInstances"]')" 5

    step "HTTP in, DIMSE out: C-ECHO and C-FIND"
    for path in trigger-dicom dicom; do
        http 200 -X POST "http://localhost:$HARMONY_HTTP_PORT/$path/echo"
        expect "answered by" "$(json 'it["remote_aet"]')" ORTHANC
        http 200 -X POST "http://localhost:$HARMONY_HTTP_PORT/$path/find" \
            -H "Content-Type: application/json" \
            -d '{"patient_id": "12345", "query_level": "PATIENT"}'
        expect "Patient ID" "$(json '*(match["00100020"]["Value"][0] for match in it["matches"])')" 12345
    done

    step "HTTP in, DIMSE out: a study"
    http 200 -X POST "http://localhost:$HARMONY_HTTP_PORT/dicom/get" \
        -H "Content-Type: application/json" \
        -d '{"study_instance_uid": "1.2.3.4.5"}'
    expect "files" "$(json 'it["file_count"]')" 5
    same_as_sent "$work/sent" "$(json 'it["folder_path"]')"

    step "DIMSE in, DIMSE out: the same"
    run findscu -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0010,0020=12345
    expect "Patient ID" "$(values 0010,0020)" 12345
    run_in "$work/got" getscu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0020,000D=1.2.3.4.5
    same_as_sent "$work/sent" "$work/got"

    step "The PACS goes away"
    kill_now orthanc
    http 502 -X POST "http://localhost:$HARMONY_HTTP_PORT/dicom/echo"
    say "$(cat "$work/last-output")"
    run findscu -v -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0010,0020=12345
    say "$(grep 'Final Find Response' "$work/last-output")"
    expect "successful finds" "$(matches 'Final Find Response \(Success')" 0
    stop gateway
}

demo "$@"
