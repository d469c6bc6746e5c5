#!/usr/bin/env bash
# Every DIMSE service at one endpoint, with real programs, on this machine:
#
#   examples/dicom-scp/demo.sh [--keep] [--free-ports]
#
# Starts the archive of config.toml on the loopback interface; sends it a study with DCMTK, queries and retrieves it with
# DCMTK and with Orthanc, and compares every data set. Then the same endpoint in front of Orthanc, proxy.toml.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

main() {
    need curl
    need_dcmtk echoscu storescu findscu getscu movescu storescp
    ports HARMONY_DICOM_PORT=11112 DEST_PORT=11114 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042

    step "An archive"
    start_harmony archive examples/dicom-scp/config.toml
    make_study "$work/sent" --study-instance-uid 1.2.3.4.5 --patient-id PATIENT123

    step "C-ECHO"
    run echoscu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT"
    say "answered"

    step "C-STORE"
    run storescu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" --scan-directories --recurse "$work/sent"
    same_as_sent "$work/sent" "$work/archive/dimse/1.2.3.4.5"

    step "C-FIND, Patient Root: all patients, one patient, one that is not there"
    run findscu -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k '0010,0020=*'
    expect "Patient ID" "$(values 0010,0020)" PATIENT123
    run findscu -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0010,0020=PATIENT123
    expect "Patient ID" "$(values 0010,0020)" PATIENT123
    run findscu -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0010,0020=NOBODY
    expect "responses" "$(responses)" 0

    step "C-FIND, Study Root: studies, and the series of one"
    run findscu -aec HARMONY_SCP -S 127.0.0.1 "$HARMONY_DICOM_PORT" -k '0020,000D=*'
    expect "Study Instance UID" "$(values 0020,000d)" 1.2.3.4.5
    run findscu -aec HARMONY_SCP -S 127.0.0.1 "$HARMONY_DICOM_PORT" -k QueryRetrieveLevel=SERIES \
        -k StudyInstanceUID=1.2.3.4.5 -k SeriesNumber -k NumberOfSeriesRelatedInstances
    expect "Series Number" "$(values 0020,0011)" "1 2"
    expect "Number of Series Related Instances" "$(values 0020,1209)" "2 3"

    step "C-GET"
    get_study "$work/got"
    same_as_sent "$work/sent" "$work/got"

    step "C-MOVE"
    start_destination "$work/moved"
    run movescu -aec HARMONY_SCP -aem DEST_AET 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0020,000D=1.2.3.4.5
    same_as_sent "$work/sent" "$work/moved"

    step "Query with Orthanc, and have it sent there"
    start_orthanc "harmony=HARMONY_SCP:$HARMONY_DICOM_PORT"
    http 200 -X POST "http://localhost:$ORTHANC_HTTP_PORT/modalities/harmony/query" \
        -d '{"Level":"Study","Query":{"PatientID":"*"}}'
    query=http://localhost:$ORTHANC_HTTP_PORT$(json 'it["Path"]')
    http 200 "$query/answers/0/content?simplify"
    expect "Study Instance UID" "$(json 'it["StudyInstanceUID"]')" 1.2.3.4.5
    http 200 -X POST "$query/retrieve" -d ORTHANC
    http 200 "http://localhost:$ORTHANC_HTTP_PORT/statistics"
    expect "instances in Orthanc" "$(json 'it["CountInstances"]')" 5

    step "What the log says of it"
    grep -m 2 'association 1 ' "$work/archive/harmony_dicom_scp.log" | sed 's/^/   /'
    stop archive

    step "The same endpoint in front of a PACS"
    start_harmony proxy examples/dicom-scp/proxy.toml
    make_study "$work/second" --study-instance-uid 1.2.3.4.6 --patient-id PATIENT456
    run echoscu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT"
    run storescu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" --scan-directories --recurse "$work/second"
    http 200 "http://localhost:$ORTHANC_HTTP_PORT/statistics"
    expect "instances in Orthanc" "$(json 'it["CountInstances"]')" 10
    run findscu -aec HARMONY_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k '0010,0020=*'
    expect "Patient ID" "$(values 0010,0020)" "PATIENT123 PATIENT456"
    get_study "$work/got-through"
    same_as_sent "$work/sent" "$work/got-through"
    rm "$work"/moved/*
    run movescu -aec HARMONY_SCP -aem DEST_AET 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0020,000D=1.2.3.4.6
    same_as_sent "$work/second" "$work/moved"
    expect "objects kept on the way" "$(find "$work/proxy" -name '*.dcm' | wc -l)" 0
    stop proxy
}

# How many responses findscu has printed
responses() { matches '^I: Find Response: [0-9]+ \(Pending\)'; }

# getscu writes into the folder it is started in: get_study FOLDER
get_study() {
    run_in "$1" getscu -aec HARMONY_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0020,000D=1.2.3.4.5
}

# DEST_AET, which stores data sets as they come: start_destination FOLDER
start_destination() {
    mkdir "$1"
    start destination "$DEST_PORT" storescp -aet DEST_AET +B -od "$1" "$DEST_PORT"
}

demo "$@"
