#!/usr/bin/env bash
# DIMSE operations at a PACS, by HTTP, with real programs, on this machine:
#
#   examples/dicom-backend/demo.sh [--keep] [--free-ports]
#
# Starts Orthanc and the gateway of config.toml on the loopback interface; stores a study in Orthanc, finds it and
# retrieves it by C-GET and C-MOVE, all with curl, and compares every data set. Last it asks when there is no PACS.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

main() {
    local image
    need curl
    ports HARMONY_HTTP_PORT=8085 HARMONY_ADMIN_PORT=9090 HARMONY_STORE_PORT=11123 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042
    trigger=http://127.0.0.1:$HARMONY_HTTP_PORT/trigger-dicom

    step "A PACS and the gateway"
    start_orthanc "harmony=HARMONY_SCU:$HARMONY_STORE_PORT"
    start_harmony gateway examples/dicom-backend/config.toml
    make_study "$work/sent" --study-instance-uid 1.2.3.4.5.6 --patient-id PATIENT123
    http 200 "http://127.0.0.1:$HARMONY_ADMIN_PORT/admin/pipelines"
    expect "backends of dicom_backend" \
        "$(json '*(each["backends"] for each in it["pipelines"] if each["id"] == "dicom_backend")')" "['dicom_pacs']"

    step "C-ECHO"
    http 200 -X POST "$trigger/echo"
    expect "answered by" "$(json 'it["remote_aet"]')" ORTHANC

    step "C-STORE"
    for image in "$work"/sent/series-*/*.dcm; do
        http 200 -X POST "$trigger/store" -H "Content-Type: application/dicom" --data-binary "@$image"
        expect "status" "$(json 'it["status"]')" 0000
    done

    step "C-FIND"
    http 200 -X POST "$trigger" \
        -H "Content-Type: application/json" \
        -d '{
    "operation": "C-FIND",
    "query": {
      "PatientID": "*",
      "PatientName": "*",
      "StudyInstanceUID": ""
    }
  }'
    expect "Study Instance UID" "$(values_of 0020000D)" 1.2.3.4.5.6
    expect "Patient ID" "$(values_of 00100020)" PATIENT123
    http 200 -X POST "$trigger" \
        -H "Content-Type: application/json" \
        -d '{
    "operation": "C-FIND",
    "level": "STUDY",
    "query": {
      "StudyInstanceUID": "1.2.3.4.5.6"
    }
  }'
    expect "matches" "$(json 'len(it["matches"])')" 1
    http 200 -X POST "$trigger/find" -H "Content-Type: application/json" \
        -d '{"00100020": {"vr": "LO", "Value": ["NOBODY"]}, "0020000D": {"vr": "UI", "Value": []}}'
    expect "matches" "$(json 'len(it["matches"])')" 0

    step "C-MOVE, to the gateway itself"
    http 200 -X POST "$trigger" \
        -H "Content-Type: application/json" \
        -d '{
    "operation": "C-MOVE",
    "destination": "HARMONY_SCU",
    "query": {
      "StudyInstanceUID": "1.2.3.4.5.6"
    }
  }'
    retrieved

    step "C-GET"
    http 200 -X POST "$trigger/get" -H "Content-Type: application/json" -d '{"StudyInstanceUID": "1.2.3.4.5.6"}'
    retrieved

    step "A study that is not there, a request without meaning"
    http 404 -X POST "$trigger/get" -H "Content-Type: application/json" -d '{"StudyInstanceUID": "1.2.3"}'
    say "$(cat "$work/last-output")"
    http 400 -X POST "$trigger/find" -H "Content-Type: application/json" -d '{"PatientIdentity": "PATIENT123"}'
    say "$(cat "$work/last-output")"

    step "The PACS goes away"
    kill_now orthanc
    http 502 -X POST "$trigger/find" -H "Content-Type: application/json" -d '{"PatientID": "*"}'
    say "$(cat "$work/last-output")"

    step "What has been counted"
    http 200 "http://127.0.0.1:$HARMONY_ADMIN_PORT/metrics"
    grep '^harmony_operations_total.*role="scu"' "$work/last-output" | sed 's/^/   /'
    stop gateway
}

# The values of an attribute in the matches: values_of GGGGEEEE
values_of() { json "*sorted(value for match in it['matches'] for value in match['$1'].get('Value', []))"; }

# The answer to a retrieve of the study that was stored
retrieved() {
    expect "files" "$(json 'it["file_count"]')" 5
    expect "instances" "$(json 'len(it["instances"])')" 5
    same_as_sent "$work/sent" "$(json 'it["folder_path"]')"
}

demo "$@"
