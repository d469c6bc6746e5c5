#!/usr/bin/env bash
# DICOMweb in front of a PACS that speaks DIMSE, with real programs, on this machine:
#
#   examples/dicomweb/demo.sh [--keep] [--free-ports]
#
# Starts Orthanc and the gateway of config.toml on the loopback interface; sends Orthanc a study with DCMTK; searches it,
# retrieves it and stores another one, all with curl, and compares every data set. Last it asks when there is no PACS.
# Runs from any folder, leaves nothing behind; the options are those of examples/demo.bash.

source "$(dirname "${BASH_SOURCE[0]}")/../demo.bash"

readonly SERIES_1_IMAGES=3
readonly PIXEL_DATA_BYTES=8192 # of each image; they are the last in its file

main() {
    need curl unzip cmp
    need_dcmtk storescu
    ports HARMONY_HTTP_PORT=8081 ORTHANC_PORT=4242 ORTHANC_HTTP_PORT=8042
    local server=http://localhost:$HARMONY_HTTP_PORT

    step "A PACS with a study, and the gateway"
    start_orthanc
    start_harmony gateway examples/dicomweb/config.toml
    make_study "$work/sent" --study-instance-uid 1.2.3.4.5 --series-instance-uid 1.2.3.4.5.1 --patient-id PID123 \
        --study-date 20250615
    run storescu -aec ORTHANC --scan-directories --recurse 127.0.0.1 "$ORTHANC_PORT" "$work/sent"

    search "$server/dicom"
    retrieve "$server/dicom"
    look_inside "$server/dicom"
    store "$server/dicom"

    step "What has no meaning, and what is not there"
    http 400 "$server/dicom/studies?PatientIdentity=PID123"
    say "$(cat "$work/last-output")"
    http 404 "$server/dicom/studies/1.2.3" -H 'Accept: multipart/related; type="application/dicom"'
    say "$(cat "$work/last-output")"
    http 406 "$server/dicom/studies/1.2.3.4.5" -H "Accept: image/jpeg"
    say "$(cat "$work/last-output")"
    http 400 "$server/dicom/studies/1.2.3.4.5" -H "Accept: application/dicom, image/jpeg"
    say "$(cat "$work/last-output")"

    step "The same below another prefix"
    stop gateway
    start_harmony gateway examples/dicomweb/config.toml HARMONY_DICOMWEB_PREFIX=/dicomweb
    every_path "$server/dicomweb"
    http 404 "$server/dicom/studies"

    step "The PACS goes away"
    kill_now orthanc
    http 502 "$server/dicomweb/studies?PatientID=PID123" -H "Accept: application/dicom+json"
    say "$(cat "$work/last-output")"
    http 502 "$server/dicomweb/studies/1.2.3.4.5" -H 'Accept: multipart/related; type="application/dicom"'
    http 502 "$server/dicomweb/studies" -H "Content-Type: application/dicom" --data-binary "@$work/one/image.dcm"
    stop gateway
}

search() {
    step "QIDO-RS: studies by patient ID"
    http 200 "$1/studies?PatientID=PID123" \
        -H "Accept: application/dicom+json"
    expect "content type" "$(header Content-Type)" application/dicom+json
    the_study

    step "Studies by date range"
    http 200 "$1/studies?StudyDate=20250101-20251231" \
        -H "Accept: application/dicom+json"
    the_study
    expect "study date" "$(values_of 00080020)" 20250615
    http 204 "$1/studies?StudyDate=20260101-20261231" \
        -H "Accept: application/dicom+json"
    say "nothing"

    step "The series of a study"
    http 200 "$1/studies/1.2.3.4.5/series" \
        -H "Accept: application/dicom+json"
    expect "series" "$(json 'len(it)')" 2
    expect "series numbers" "$(values_of 00200011)" "1 2"
    expect "modalities" "$(values_of 00080060)" "CT CT"
    expect "the first" "$(json '*(each["0020000E"]["Value"][0] for each in it if each["00200011"]["Value"] == [1])')" \
        1.2.3.4.5.1

    step "The instances of a series"
    http 200 "$1/studies/1.2.3.4.5/series/1.2.3.4.5.1/instances" \
        -H "Accept: application/dicom+json"
    expect "instances" "$(json 'len(it)')" "$SERIES_1_IMAGES"
    expect "instance numbers" "$(values_of 00200013)" "1 2 3"
    instance=$(json '*(each["00080018"]["Value"][0] for each in it if each["00200013"]["Value"] == [1])')
    expect "SOP Instance UIDs" "$(values_of 00080018)" "$(sent_uids "$work/sent/series-1")"

    step "What nobody has"
    http 204 "$1/studies?PatientID=NOBODY" \
        -H "Accept: application/dicom+json"
    say "nothing"
    http 204 "$1/studies/1.2.3/series" -H "Accept: application/dicom+json"
    say "nothing"
}

retrieve() {
    step "WADO-RS: a study"
    http 200 "$1/studies/1.2.3.4.5" -H 'Accept: multipart/related; type="application/dicom"'
    unpacked study
    same_as_sent "$work/sent" "$work/study"
    http 200 "$1/studies/1.2.3.4.5" -H "Accept: application/zip"
    mv "$work/last-output" "$work/study.zip"
    run unzip -t "$work/study.zip"
    same_as_sent "$work/sent" "$work/study.zip"

    step "A series"
    http 200 "$1/studies/1.2.3.4.5/series/1.2.3.4.5.1" -H 'Accept: multipart/related; type="application/dicom"'
    unpacked series
    same_as_sent "$work/sent/series-1" "$work/series"

    step "One instance, in a multipart body and as a file"
    mkdir "$work/one" "$work/file"
    cp "$work/sent/series-1/image-1.dcm" "$work/one/image.dcm"
    instance_path=/studies/1.2.3.4.5/series/1.2.3.4.5.1/instances/$instance
    http 200 "$1$instance_path" -H 'Accept: multipart/related; type="application/dicom"'
    unpacked instance
    same_as_sent "$work/one" "$work/instance"
    http 200 "$1$instance_path" -H "Accept: application/dicom"
    expect "content type" "$(header Content-Type)" "application/dicom; transfer-syntax=1.2.840.10008.1.2.1"
    cp "$work/last-output" "$work/file/image.dcm"
    same_as_sent "$work/one" "$work/file"
}

look_inside() {
    local bulk
    tail -c "$PIXEL_DATA_BYTES" "$work/one/image.dcm" >"$work/pixel-data"

    step "Metadata"
    http 200 "$1/studies/1.2.3.4.5/metadata" -H "Accept: application/dicom+json"
    expect "instances" "$(json 'len(it)')" 5
    expect "patient" "$(json '*{each["00100010"]["Value"][0]["Alphabetic"] for each in it}')" Demo^Harmony
    http 200 "$1$instance_path/metadata" -H "Accept: application/dicom+json"
    expect "rows" "$(values_of 00280010)" 64
    bulk=$(json 'it[0]["7FE00010"]["BulkDataURI"]')
    http 200 "$bulk"
    unpacked pixel-data-by-uri
    run cmp "$work/pixel-data" "$work/pixel-data-by-uri/1"

    step "The frame in it"
    http 200 "$1$instance_path/frames/1" -H 'Accept: multipart/related; type="application/octet-stream"'
    unpacked frames
    run cmp "$work/pixel-data" "$work/frames/1"
    http 404 "$1$instance_path/frames/2" -H 'Accept: multipart/related; type="application/octet-stream"'
}

store() {
    step "STOW-RS: a new study, in one body, and one file more"
    make_study "$work/new" --patient-id PID456
    mkdir "$work/last"
    mv "$work/new/series-2/image-2.dcm" "$work/last/"
    run "$python" examples/multipart.py pack "$work/new.body" between-images "$work"/new/series-*/*.dcm
    http 200 "$1/studies" -H 'Content-Type: multipart/related; type="application/dicom"; boundary=between-images' \
        --data-binary "@$work/new.body"
    expect "stored" "$(stored)" 4
    http 200 "$1/studies/$study" -H "Content-Type: application/dicom" --data-binary "@$work/last/image-2.dcm"
    expect "stored" "$(stored)" 1
    mv "$work/last/image-2.dcm" "$work/new/series-2/"
    http 200 "$1/studies?PatientID=PID456" -H "Accept: application/dicom+json"
    expect "study" "$(values_of 0020000D)" "$study"
    http 200 "$1/studies/$study" -H 'Accept: multipart/related; type="application/dicom"'
    unpacked stored
    same_as_sent "$work/new" "$work/stored"

    step "A file in the wrong study"
    http 409 "$1/studies/1.2.3" -H "Content-Type: application/dicom" --data-binary "@$work/one/image.dcm"
    expect "refused" "$(json 'len(it["00081198"]["Value"])')" 1
}

# The rest of what there is, without a look at what is in it
every_path() {
    local path
    http 200 "$1/studies?PatientID=PID123"
    the_study
    for path in studies studies/1.2.3.4.5 studies/1.2.3.4.5/series studies/1.2.3.4.5/series/1.2.3.4.5.1 \
        studies/1.2.3.4.5/series/1.2.3.4.5.1/instances series instances \
        studies/1.2.3.4.5/metadata studies/1.2.3.4.5/series/1.2.3.4.5.1/metadata "${instance_path#/}/metadata"; do
        http 200 "$1/$path" -H "Accept: application/dicom+json"
        say "$(json 'len(it)') in it"
    done
    http 200 "$1$instance_path" -H 'Accept: multipart/related; type="application/dicom"'
    unpacked instance-again
    same_as_sent "$work/one" "$work/instance-again"
    http 406 "$1$instance_path/frames/1" -H "Accept: image/jpeg"
    http 404 "$1/bulkdata/test-uri"
    http 200 -X OPTIONS "$1/studies"
    say "Allow: $(header Allow)"
}

# The last search has found what was sent.
the_study() {
    expect "study" "$(values_of 0020000D)" 1.2.3.4.5
    expect "patient" "$(values_of 00100020)" PID123
}

# The values of an attribute in what was found: values_of GGGGEEEE
values_of() { json "*sorted(value for found in it for value in found['$1'].get('Value', []))"; }

sent_uids() {
    "$python" -c 'import sys, pydicom
print(*sorted(pydicom.dcmread(file).SOPInstanceUID for file in sys.argv[1:]))' "$1"/*.dcm
}

# How many objects the last store says are stored
stored() { json 'len(it["00081199"]["Value"])'; }

# unpacked FOLDER: the parts of the last answer go there.
unpacked() {
    say "$(header Content-Type | cut -d';' -f1,2)"
    mv "$work/last-output" "$work/$1.body"
    run "$python" examples/multipart.py unpack "$work/$1.body" "$work/$1"
}

demo "$@"
