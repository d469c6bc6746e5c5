#!/usr/bin/env bash
# DIMSE in front of a DICOMweb server, with real programs, on this machine:
#
#   examples/dicom-to-dicomweb/demo.sh [--keep] [--free-ports]
#
# Starts Orthanc with its DICOMweb plugin, and the gateway of config.toml, on the loopback interface; stores a study, queries
# and retrieves it with DCMTK, looks for it in Orthanc, and compares every data set. Last it asks when there is no server.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

main() {
    need curl
    need_dcmtk echoscu storescu findscu getscu movescu storescp
    find_orthanc_plugin OrthancDicomWeb
    ports HARMONY_DICOM_PORT=11112 DEST_PORT=11114 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042
    local server=http://localhost:$ORTHANC_HTTP_PORT/dicom-web

    step "A DICOMweb server, and the gateway"
    start_orthanc
    start_harmony gateway examples/dicom-to-dicomweb/config.toml
    make_study "$work/sent" --study-instance-uid 1.2.3.4.5 --series-instance-uid 1.2.3.4.5.1 --patient-id PATIENT123

    step "C-ECHO"
    run echoscu -aec BRIDGE_SCP 127.0.0.1 "$HARMONY_DICOM_PORT"
    say "answered"

    step "C-STORE becomes STOW-RS"
    run storescu -aec BRIDGE_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" --scan-directories --recurse "$work/sent"
    http 200 "$server/studies?PatientID=PATIENT123" -H "Accept: application/dicom+json"
    expect "study in the server" "$(json '*(each["0020000D"]["Value"][0] for each in it)')" 1.2.3.4.5
    http 200 "$server/studies/1.2.3.4.5/instances" -H "Accept: application/dicom+json"
    expect "its instances" "$(json 'len(it)')" 5

    step "C-FIND becomes QIDO-RS: a patient, one that is not there, a study, its series, the images of one"
    find_at PATIENT -k PatientID=PATIENT123
    expect "Patient ID" "$(values 0010,0020)" PATIENT123
    find_at PATIENT -k PatientID=NOBODY
    expect "responses" "$(responses)" 0
    find_at STUDY -k PatientID=PATIENT123 -k StudyInstanceUID
    expect "Study Instance UID" "$(values 0020,000d)" 1.2.3.4.5
    find_at SERIES -k StudyInstanceUID=1.2.3.4.5 -k SeriesNumber
    expect "Series Number" "$(values 0020,0011)" "1 2"
    find_at IMAGE -k StudyInstanceUID=1.2.3.4.5 -k SeriesInstanceUID=1.2.3.4.5.1 -k InstanceNumber
    expect "Instance Number" "$(values 0020,0013)" "1 2 3"

    step "C-GET becomes WADO-RS: the study, and one series of it"
    get "$work/got" -k QueryRetrieveLevel=STUDY -k StudyInstanceUID=1.2.3.4.5
    same_as_sent "$work/sent" "$work/got"
    get "$work/got-series" -k QueryRetrieveLevel=SERIES -k StudyInstanceUID=1.2.3.4.5 -k SeriesInstanceUID=1.2.3.4.5.1
    same_as_sent "$work/sent/series-1" "$work/got-series"

    step "C-MOVE: what WADO-RS brings is sent on by C-STORE"
    mkdir "$work/moved"
    start destination "$DEST_PORT" storescp -aet DEST_AET +B -od "$work/moved" "$DEST_PORT"
    run movescu -aec BRIDGE_SCP -aem DEST_AET 127.0.0.1 "$HARMONY_DICOM_PORT" -k 0020,000D=1.2.3.4.5
    same_as_sent "$work/sent" "$work/moved"
    expect "objects kept on the way" "$(find "$work/gateway" -name '*.dcm' | wc -l)" 0

    step "The server goes away"
    kill_now orthanc
    run echoscu -aec BRIDGE_SCP 127.0.0.1 "$HARMONY_DICOM_PORT"
    say "the gateway answers"
    run findscu -v -aec BRIDGE_SCP -S 127.0.0.1 "$HARMONY_DICOM_PORT" -k QueryRetrieveLevel=STUDY -k StudyInstanceUID
    expect "responses" "$(responses)" 0
    expect "C000 Unable to process" "$(matches 'UnableToProcess|0xc000')" 1
    stop gateway
}

# find_at LEVEL KEY...
find_at() {
    local level=$1
    shift
    run findscu -aec BRIDGE_SCP -P 127.0.0.1 "$HARMONY_DICOM_PORT" -k "QueryRetrieveLevel=$level" "$@"
}

# How many matches findscu has printed
responses() { matches '^I: Find Response: [0-9]+ \(Pending\)'; }

# getscu writes into the folder it is started in: get FOLDER KEY...
get() {
    local folder=$1
    shift
    run_in "$folder" getscu -aec BRIDGE_SCP 127.0.0.1 "$HARMONY_DICOM_PORT" "$@"
}

demo "$@"
