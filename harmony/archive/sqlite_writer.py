"""Put instances into the tables of `sqlite_schema`, and take them out, so that all levels agree afterwards.

What only adds to a series (the flood of a receiving archive) is counted on; whatever else happens to it (a file
replaced, removed, received before its representative, beside another of the same UID) has the series, its study and
its patient worked out again from their instances. That is slower and cannot be wrong, which is why it is not avoided.

Everything happens in the caller's transaction, and by one caller at a time. Called by `sqlite_index`.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field

import msgspec

from harmony.archive.header_compression import HeaderCompressor, HeaderDecompressor, new_dictionary
from harmony.archive.index import IndexedInstance
from harmony.archive.levels import (
    PATIENT_ATTRIBUTES,
    SERIES_ATTRIBUTES,
    STUDY_ATTRIBUTES,
    Entity,
    joined,
    patient_key,
    select,
)
from harmony.archive.matching import comparable_of
from harmony.archive.person_name import name_groups
from harmony.dicom.json_model import vr_of

__all__ = ["PATIENT_NAME", "REFERRING_NAME", "STUDY_PATIENT_NAME", "SQLiteWriter"]

SERIES_CACHE_SIZE = 4096
"""Series whose rows need not be looked up; more than arrive at a time."""

PATIENT_NAME, STUDY_PATIENT_NAME, REFERRING_NAME = "P", "S", "R"
"""Kinds of rows in `name`: of a patient, of a study's patient, of a study's referring physician."""

_DATE = re.compile(r"[0-9]{8}\Z").match
_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Entity] = msgspec.json.Decoder(Entity)


@dataclass(slots=True)
class _Series:
    """What has become of a series since the transaction began, and where it is."""

    id: int
    study: int
    received_ns: int
    sop_classes: set[str]
    added: int = 0
    recount: bool = False
    """Counting on is not enough."""


@dataclass(slots=True)
class _Changes:
    """What one transaction has touched."""

    series: dict[int, _Series] = field(default_factory=dict)
    studies: set[int] = field(default_factory=set)
    """Of which the series are to be summed up again."""
    representatives: set[int] = field(default_factory=set)
    """Studies whose attributes may have to come from another instance."""
    patients: set[int] = field(default_factory=set)


class SQLiteWriter:
    """Fills the tables over one connection."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._execute = database.execute
        self._compressor = HeaderCompressor(self._dictionary)
        self._decompressor = HeaderDecompressor(self._dictionary)
        self._series: dict[tuple[str, str], _Series] = {}
        self._changes = _Changes()

    def forget(self) -> None:
        """Drop what is remembered of the tables: a transaction was rolled back."""
        self._series.clear()
        self._changes = _Changes()
        self._compressor.forget()
        self._decompressor.forget()

    def add(self, instance: IndexedInstance) -> None:
        """Put one in, in place of what was there for its path; `finish` makes the levels above it agree."""
        series = self._series_of(instance)
        uid, name = instance.sop_instance_uid, file_name(instance)
        rows = self._execute(
            "SELECT id, name, received_ns FROM instance WHERE series = ? AND uid = ?", (series.id, uid)
        ).fetchall()
        number, odd = _column(instance.header, 0x00200013)
        values = (
            odd,
            number,
            instance.sop_class_uid,
            instance.transfer_syntax_uid,
            instance.size_bytes,
            instance.received_ns,
            instance.data_set_offset,
            instance.pixel_data_offset,
        )
        same = next((row[0] for row in rows if row[1] == name), None)
        content = self._compressor.compress(series.id, instance.header)
        if same is not None:
            series.recount = True
            self._execute(_UPDATE_INSTANCE, (*values, same))
            self._execute("UPDATE header SET content = ? WHERE instance = ?", (content, same))
            return
        key = self._execute(_INSERT_INSTANCE, (series.id, uid, name, *values)).lastrowid
        self._execute("INSERT INTO header VALUES (?, ?)", (key, content))
        series.added += 1
        series.sop_classes.add(instance.sop_class_uid)
        if rows or instance.received_ns <= series.received_ns:
            series.recount = True

    def remove(self, study_uid: str, series_uid: str, instance: int) -> None:
        """Take the row of an instance out; `finish` makes the levels above it agree."""
        series = self._find_series(study_uid, series_uid)
        if series is not None:
            series.recount = True
            self._execute("DELETE FROM instance WHERE id = ?", (instance,))
            self._execute("DELETE FROM header WHERE instance = ?", (instance,))

    def finish(self) -> None:
        """Bring series, studies and patients into agreement with their instances."""
        changes, self._changes = self._changes, _Changes()
        for series in changes.series.values():
            self._finish_series(series, changes)
        for study in changes.representatives:
            self._represent_study(study, changes)
        for study in changes.studies:
            self._sum_study(study, changes)
        for patient in changes.patients:
            self._finish_patient(patient)

    # Series

    def _series_of(self, instance: IndexedInstance) -> _Series:
        series = self._find_series(instance.study_instance_uid, instance.series_instance_uid)
        return series if series is not None else self._new_series(instance)

    def _find_series(self, study_uid: str, series_uid: str) -> _Series | None:
        series = self._series.get((study_uid, series_uid))
        if series is None:
            row = self._execute(
                "SELECT series.id, study, series.received_ns, series.sop_classes FROM series "
                "JOIN study ON study.id = series.study WHERE study.uid = ? AND series.uid = ?",
                (study_uid, series_uid),
            ).fetchone()
            if row is None:
                return None
            series = _Series(row[0], row[1], row[2], set(_uids(row[3])))
            self._remember(study_uid, series_uid, series)
        self._changes.series[series.id] = series
        return series

    def _remember(self, study_uid: str, series_uid: str, series: _Series) -> None:
        if len(self._series) >= SERIES_CACHE_SIZE:
            del self._series[next(iter(self._series))]
        self._series[study_uid, series_uid] = series

    def _new_series(self, instance: IndexedInstance) -> _Series:
        """Make a series without representative; `finish` finds it one."""
        study_uid, series_uid = instance.study_instance_uid, instance.series_instance_uid
        row = self._execute("SELECT id FROM study WHERE uid = ?", (study_uid,)).fetchone()
        study = row[0] if row is not None else self._execute(_INSERT_STUDY, (study_uid,)).lastrowid
        dictionary = new_dictionary(instance.header)
        key = self._execute(_INSERT_SERIES, (study, series_uid, dictionary)).lastrowid
        assert key is not None
        assert study is not None
        series = _Series(key, study, _NEVER_NS, set(), recount=True)
        self._remember(study_uid, series_uid, series)
        self._changes.series[key] = series
        return series

    def _finish_series(self, series: _Series, changes: _Changes) -> None:
        changes.studies.add(series.study)
        if series.recount:
            self._recount_series(series, changes)
        elif series.added:
            self._execute(
                "UPDATE series SET instances = instances + ?, sop_classes = ? WHERE id = ?",
                (series.added, "\\".join(sorted(series.sop_classes)), series.id),
            )
        series.added, series.recount = 0, False

    def _recount_series(self, series: _Series, changes: _Changes) -> None:
        """Work everything out from the instances."""
        changes.representatives.add(series.study)
        self._execute(_SHADOWS, (series.id, series.id))
        counted = self._execute(
            "SELECT sop_class_uid, count(*) FROM instance WHERE series = ? AND NOT shadow GROUP BY 1",
            (series.id,),
        ).fetchall()
        if not counted:
            self._execute("DELETE FROM series WHERE id = ?", (series.id,))
            self._series = {key: kept for key, kept in self._series.items() if kept.id != series.id}
            return
        series.sop_classes = {row[0] for row in counted}
        key, series.received_ns = self._execute(
            "SELECT id, received_ns FROM instance WHERE series = ? AND NOT shadow ORDER BY received_ns, uid LIMIT 1",
            (series.id,),
        ).fetchone()
        attributes = select(self._header(series.id, key), SERIES_ATTRIBUTES)
        modality, odd_modality = _column(attributes, 0x00080060)
        number, odd_number = _column(attributes, 0x00200011)
        self._execute(
            "UPDATE series SET representative = ?, received_ns = ?, attributes = ?, odd = ?, modality = ?, number = ?, "
            "instances = ?, sop_classes = ? WHERE id = ?",
            (
                key,
                series.received_ns,
                _encode(attributes),
                odd_modality or odd_number,
                modality,
                number,
                sum(row[1] for row in counted),
                "\\".join(sorted(series.sop_classes)),
                series.id,
            ),
        )

    def _header(self, series: int, instance: int) -> Entity:
        content = self._execute("SELECT content FROM header WHERE instance = ?", (instance,)).fetchone()[0]
        return self._decompressor.decompress(series, content)

    def _dictionary(self, series: int) -> bytes:
        row = self._execute("SELECT dictionary FROM series WHERE id = ?", (series,)).fetchone()
        return bytes(row[0])

    # Studies

    def _represent_study(self, study: int, changes: _Changes) -> None:
        """Give a study the attributes of the instance received first, or remove it when it has none left."""
        row = self._execute(
            "SELECT series.id, series.representative, series.received_ns FROM series "
            "JOIN instance ON instance.id = series.representative WHERE study = ? "
            "ORDER BY series.received_ns, instance.uid, series.uid LIMIT 1",
            (study,),
        ).fetchone()
        old_patient = self._execute("SELECT patient FROM study WHERE id = ?", (study,)).fetchone()[0]
        changes.patients.add(old_patient)
        self._execute(
            "DELETE FROM name WHERE entity = ? AND kind IN (?, ?)",
            (study, STUDY_PATIENT_NAME, REFERRING_NAME),
        )
        if row is None:
            self._execute("DELETE FROM study WHERE id = ?", (study,))
            changes.studies.discard(study)
            return
        series, representative, received_ns = row
        attributes = select(self._header(series, representative), STUDY_ATTRIBUTES)
        patient = self._patient_of(attributes)
        changes.patients.add(patient)
        patient_columns, patient_odd = _patient_columns(attributes)
        date, odd_date = _column(attributes, 0x00080020)
        accession, odd_accession = _column(attributes, 0x00080050)
        study_id, odd_id = _column(attributes, 0x00200010)
        self._execute(
            _UPDATE_STUDY,
            (
                patient,
                representative,
                received_ns,
                _encode(attributes),
                patient_odd or odd_date or odd_accession or odd_id,
                *patient_columns,
                date,
                accession,
                study_id,
                study,
            ),
        )
        self._name(STUDY_PATIENT_NAME, study, attributes, "00100010")
        self._name(REFERRING_NAME, study, attributes, "00080090")

    def _name(self, kind: str, entity: int, attributes: Entity, tag: str) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO name VALUES (?, ?, ?)",
            [(kind, key, entity) for key in _name_keys(attributes, tag)],
        )

    def _sum_study(self, study: int, changes: _Changes) -> None:
        rows = self._execute(
            "SELECT modality, sop_classes, sum(instances), count(*), max(odd) FROM series WHERE study = ? "
            "GROUP BY 1, 2",
            (study,),
        ).fetchall()
        modalities = {row[0] for row in rows if row[0]}
        if any(row[4] for row in rows):  # a modality may have several values, which the column does not show
            for (attributes,) in self._execute("SELECT attributes FROM series WHERE study = ?", (study,)):
                modalities.update(filter(None, joined(_decoder.decode(attributes), 0x00080060).split("\\")))
        sop_classes = {uid for row in rows for uid in _uids(row[1])}
        patient = self._execute(
            "UPDATE study SET series = ?, instances = ?, modalities = ?, sop_classes = ? "
            "WHERE id = ? RETURNING patient",
            (
                sum(row[3] for row in rows),
                sum(row[2] for row in rows),
                "\\".join(sorted(modalities)),
                "\\".join(sorted(sop_classes)),
                study,
            ),
        ).fetchone()[0]
        changes.patients.add(patient)

    # Patients

    def _patient_of(self, attributes: Entity) -> int:
        """Find or make the patient of a study; `finish` finds it a representative."""
        key = patient_key(attributes)
        row = self._execute("SELECT id FROM patient WHERE key = ?", (key,)).fetchone()
        patient = row[0] if row is not None else self._execute(_INSERT_PATIENT, (key,)).lastrowid
        assert patient is not None
        return int(patient)

    def _finish_patient(self, patient: int) -> None:
        """Sum up a patient's studies; give the patient the attributes of the first, or remove one without any."""
        studies, series, instances = self._execute(
            "SELECT count(*), sum(series), sum(instances) FROM study WHERE patient = ?", (patient,)
        ).fetchone()
        if not studies:
            self._execute("DELETE FROM name WHERE entity = ? AND kind = ?", (patient, PATIENT_NAME))
            self._execute("DELETE FROM patient WHERE id = ?", (patient,))
            return
        representative, received_ns, encoded = self._execute(
            "SELECT representative, received_ns, attributes FROM study WHERE patient = ? "
            "ORDER BY received_ns, uid LIMIT 1",
            (patient,),
        ).fetchone()
        attributes = select(_decoder.decode(encoded), PATIENT_ATTRIBUTES)
        encoded = _encode(attributes)
        known = self._execute("SELECT attributes FROM patient WHERE id = ?", (patient,)).fetchone()[0]
        columns, odd = _patient_columns(attributes)
        self._execute(
            _UPDATE_PATIENT,
            (representative, received_ns, encoded, odd, *columns, studies, series, instances, patient),
        )
        if known != encoded:
            self._execute("DELETE FROM name WHERE entity = ? AND kind = ?", (patient, PATIENT_NAME))
            self._name(PATIENT_NAME, patient, attributes, "00100010")


def file_name(instance: IndexedInstance) -> str:
    """Return the file's name, or nothing when it is the one that follows from the UID."""
    name = instance.path.rpartition("/")[2]
    return "" if name == f"{instance.sop_instance_uid}.dcm" else name


def _uids(joined: str) -> list[str]:
    return joined.split("\\") if joined else []


def _patient_columns(attributes: Entity) -> tuple[tuple[str, str, str], bool]:
    patient_id, odd_id = _column(attributes, 0x00100020)
    birth_date, odd_date = _column(attributes, 0x00100030)
    sex, odd_sex = _column(attributes, 0x00100040)
    return (patient_id, birth_date, sex), odd_id or odd_date or odd_sex


# What a column holds, and whether that is not all there is to say.


def _column(attributes: Entity, tag: int) -> tuple[str, bool]:
    element = attributes.get(f"{tag:08X}", {})
    values = element.get("Value") or ()
    if not values:
        return "", False
    vr = vr_of(tag)
    text = comparable_of(vr, values[0]) if len(values) == 1 else None
    if text is None or "\0" in text or (vr == "DA" and not _DATE(text)):
        return "", True
    return text, False


def _name_keys(attributes: Entity, tag: str) -> set[str]:
    """Return the groups of a name as queries compare them; one empty key stands for no name."""
    values = attributes.get(tag, {}).get("Value") or ()
    return {group for value in values for group in name_groups(value, accents=True) if group} or {""}


_NEVER_NS = (1 << 63) - 1

_INSERT_INSTANCE = (
    "INSERT INTO instance (series, uid, name, shadow, odd, number, sop_class_uid, transfer_syntax_uid, size_bytes, "
    "received_ns, data_set_offset, pixel_data_offset) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE_INSTANCE = (
    "UPDATE instance SET odd = ?, number = ?, sop_class_uid = ?, transfer_syntax_uid = ?, size_bytes = ?, "
    "received_ns = ?, data_set_offset = ?, pixel_data_offset = ? WHERE id = ?"
)
# Of several files with one UID the one received first is seen; the others stand in its shadow.
_SHADOWS = """
UPDATE instance SET shadow = EXISTS (
    SELECT 1 FROM instance AS other WHERE other.series = instance.series AND other.uid = instance.uid
    AND (other.received_ns, other.name) < (instance.received_ns, instance.name)
) WHERE series = ? AND uid IN (
    SELECT uid FROM instance WHERE series = ? GROUP BY uid HAVING count(*) > 1 OR max(shadow)
)
"""
_INSERT_SERIES = (
    "INSERT INTO series (study, uid, representative, received_ns, attributes, odd, modality, number, instances, "
    "sop_classes, dictionary) VALUES (?, ?, 0, 0, x'', 0, '', '', 0, '', ?)"
)
_INSERT_STUDY = (
    "INSERT INTO study (uid, patient, representative, received_ns, attributes, odd, patient_id, birth_date, sex, "
    "study_date, accession_number, study_id, series, instances, modalities, sop_classes) "
    "VALUES (?, 0, 0, 0, x'', 0, '', '', '', '', '', '', 0, 0, '', '')"
)
_UPDATE_STUDY = (
    "UPDATE study SET patient = ?, representative = ?, received_ns = ?, attributes = ?, odd = ?, patient_id = ?, "
    "birth_date = ?, sex = ?, study_date = ?, accession_number = ?, study_id = ? WHERE id = ?"
)
_INSERT_PATIENT = (
    "INSERT INTO patient (key, representative, received_ns, attributes, odd, patient_id, birth_date, sex, studies, "
    "series, instances) VALUES (?, 0, 0, x'', 0, '', '', '', 0, 0, 0)"
)
_UPDATE_PATIENT = (
    "UPDATE patient SET representative = ?, received_ns = ?, attributes = ?, odd = ?, patient_id = ?, birth_date = ?, "
    "sex = ?, studies = ?, series = ?, instances = ? WHERE id = ?"
)
