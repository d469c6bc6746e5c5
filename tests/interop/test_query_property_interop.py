"""C-FIND over generated archives, asked by pynetdicom and DCMTK's findscu, against a matcher that is read off PS3.4
§C.2.2.2: pydicom data sets, one after the other, nothing shared with the matching that is tested."""

import asyncio
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pydicom
import pydicom.config
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from harmony.dimse import Instance, associate
from harmony.dimse.information_model import PATIENT_ROOT, STUDY_ROOT
from harmony.gateway.app import Gateway
from harmony.gateway.loading import load
from harmony.ul.negotiation import propose_contexts

pytestmark = pytest.mark.interop

CT, MR, SC = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
LEVELS = ("PATIENT", "STUDY", "SERIES", "IMAGE")
ATTRIBUTES = {
    "PATIENT": ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    "STUDY": (
        "StudyInstanceUID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "StudyDescription",
        "ReferringPhysicianName",
        "ModalitiesInStudy",
    ),
    "SERIES": ("SeriesInstanceUID", "Modality", "SeriesNumber", "RequestAttributesSequence"),
    "IMAGE": (
        "SOPInstanceUID",
        "SOPClassUID",
        "InstanceNumber",
        "ImageType",
        "ContentTime",
        "AcquisitionDateTime",
    ),
}
UNIQUE_KEYS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


# --- Generated archives -------------------------------------------------------------------------------------

# Specific Character Set: names and descriptions that it can write.
TEXTS = {
    "": ("Doe^Jane", "DOE^JOHN^^", "Doe", "O'Neil^Pat^J^Dr^III", "doe^jane^q"),
    "ISO_IR 100": ("Müller^Jörg", "MÜLLER^Anna", "Ångström^Åsa", "Muller^Jorg"),
    "ISO_IR 101": ("Dvořák^Antonín", "Wałęsa^Lech", "Dvorak^Antonin"),
    "ISO_IR 192": ("山田^太郎", "Иванов^Иван", "Παπαδόπουλος^Γιώργος", "Müller^Jörg=山田^太郎"),
    "\\ISO 2022 IR 87": ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Suzuki^Ichirou=鈴木^一郎"),
    "\\ISO 2022 IR 149": ("Hong^Gildong=洪^吉洞=홍^길동", "Kim^Hiesun=金^喜善=김^희선"),
    "GB18030": ("Wang^XiaoDong=王^小东", "Zhang^Wei=张^伟"),
}
CODECS = {
    "": "ascii",
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 192": "utf_8",
    "\\ISO 2022 IR 87": "iso2022_jp",
    "\\ISO 2022 IR 149": "euc_kr",
    "GB18030": "gb18030",
}
ALL_NAMES = sorted({name for names in TEXTS.values() for name in names})

IDS = ("P1", "p1", "P10", "0P", "P 7", "P[1]", "1P1")
ACCESSION_NUMBERS = ("", "A1", "a1", "A10", "B.1", "A%")
DATES = ("", "20240101", "20240131", "20231231", "19700101", "20240229")
TIMES = ("", "12", "1230", "123000", "123015", "123015.5", "000000", "235959.999999")
DATE_TIMES = (
    "",
    "20240101",
    "20240101123015",
    "20240101123015.5",
    "20240101123015+0100",
    "20240101113015+0000",
    "202401011230",
)
MODALITIES = ("CT", "MR", "SR", "OT", "")
NUMBERS = ("", "1", "2", "10", "007")
IMAGE_TYPES = (["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY", "AXIAL"], ["ORIGINAL", "SECONDARY"], "")
STEPS = ("S1", "S2", "s1", "")


@dataclass(frozen=True)
class Case:
    """What is stored, and what is asked: model, level and identifier of each query."""

    instances: tuple[Dataset, ...]
    syntax: str
    empty_matches: bool
    queries: tuple[tuple[object, str, Dataset], ...]


def set_some(draw, dataset, **values):
    """Set attributes, or leave them out."""
    for name, pool in values.items():
        value = draw(st.sampled_from((*pool, None)))
        if value is not None:
            setattr(dataset, name, value)


@st.composite
def archives(draw):
    instances = []
    uids = iter(range(1, 1000))
    for patient_id in draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True)):
        patient = Dataset()
        characters = draw(st.sampled_from(sorted(TEXTS)))
        if characters:
            patient.SpecificCharacterSet = characters.split("\\") if "\\" in characters else characters
        patient.PatientID = patient_id
        set_some(
            draw,
            patient,
            PatientName=("", *TEXTS[characters]),
            PatientBirthDate=DATES,
            PatientSex=("M", "F", "O", ""),
        )
        for _ in range(draw(st.integers(1, 2))):
            study = Dataset()
            study.update(patient)
            study.StudyInstanceUID = f"1.2.{next(uids)}"
            set_some(
                draw,
                study,
                StudyDate=DATES,
                StudyTime=TIMES,
                AccessionNumber=ACCESSION_NUMBERS,
                StudyDescription=("", *TEXTS[characters]),
                ReferringPhysicianName=("", *TEXTS[characters]),
            )
            for _ in range(draw(st.integers(1, 2))):
                series = Dataset()
                series.update(study)
                series.SeriesInstanceUID = f"1.2.{next(uids)}"
                set_some(draw, series, Modality=MODALITIES, SeriesNumber=NUMBERS)
                if draw(st.booleans()):
                    series.RequestAttributesSequence = Sequence(
                        draw(st.lists(requests(characters), max_size=2))
                    )
                for _ in range(draw(st.integers(1, 2))):
                    instance = Dataset()
                    instance.update(series)
                    instance.SOPInstanceUID = f"1.2.{next(uids)}"
                    instance.SOPClassUID = draw(st.sampled_from((CT, MR, SC)))
                    set_some(
                        draw,
                        instance,
                        InstanceNumber=NUMBERS,
                        ImageType=IMAGE_TYPES,
                        ContentTime=TIMES,
                        AcquisitionDateTime=DATE_TIMES,
                    )
                    instances.append(instance)
    return tuple(instances)


@st.composite
def requests(draw, characters):
    """An item of (0040,0275)."""
    item = Dataset()
    set_some(
        draw,
        item,
        ScheduledProcedureStepID=STEPS,
        ScheduledProcedureStepDescription=("", *TEXTS[characters]),
    )
    return item


# --- Generated identifiers ----------------------------------------------------------------------------------


@st.composite
def identifiers(draw, instances, level, model):
    """Any keys of the level and those above, as a client that relies on relational queries sends them."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    above = LEVELS[: LEVELS.index(level) + 1]
    names = [name for each in above for name in ATTRIBUTES[each]]
    chosen = set(draw(st.lists(st.sampled_from(names), max_size=4)))
    chosen.add(UNIQUE_KEYS[level])
    for name in sorted(chosen):
        if name == "RequestAttributesSequence":
            identifier.RequestAttributesSequence = Sequence(draw(st.lists(request_keys(), max_size=1)))
        else:
            setattr(identifier, name, draw(key_values(name, instances)))
    text = "".join(str(element.value) for element in identifier.iterall() if element.VR != "SQ")
    terms = draw(st.sampled_from([each for each, codec in CODECS.items() if can_write(codec, text)]))
    if terms:
        identifier.SpecificCharacterSet = terms.split("\\") if "\\" in terms else terms
    return identifier


def can_write(codec, text):
    try:
        text.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


@st.composite
def request_keys(draw):
    item = Dataset()
    for name in draw(
        st.lists(
            st.sampled_from(["ScheduledProcedureStepID", "ScheduledProcedureStepDescription"]), unique=True
        )
    ):
        setattr(item, name, draw(wild(STEPS if name.endswith("ID") else ALL_NAMES)))
    return item


def key_values(name, instances):
    """Universal matching, values that are stored and others, and what the VR allows besides."""
    universal = st.sampled_from(["", "*"])
    if name.endswith("UID"):
        stored = sorted({getattr(instance, name) for instance in instances})
        lists = st.lists(st.sampled_from([*stored, "1.2.9999", "1.2"]), min_size=1, max_size=4)
        return st.just("") | lists
    match name:
        case "PatientBirthDate" | "StudyDate":
            return universal | ranges(DATES)
        case "StudyTime" | "ContentTime":
            return universal | ranges(TIMES)
        case "AcquisitionDateTime":
            return universal | ranges([value for value in DATE_TIMES if "+" not in value])
        case "SeriesNumber" | "InstanceNumber":
            return st.sampled_from(["", "1", "01", "2", "7", "3"])  # pydicom has no IS "*"
        case "Modality" | "ModalitiesInStudy":
            return universal | wild(MODALITIES)
        case "ImageType":
            return universal | wild(["ORIGINAL", "PRIMARY", "SECONDARY", "AXIAL", "LOCALIZER"])
        case "PatientSex":
            return universal | wild(["M", "F", "O"])
        case "PatientID":
            return universal | wild(IDS)
        case "AccessionNumber":
            return universal | wild(ACCESSION_NUMBERS)
        case "PatientName" | "ReferringPhysicianName":
            return universal | names()
    return universal | wild(ALL_NAMES)


@st.composite
def wild(draw, values):
    """A value, or one with wild cards in it that stand for parts of it, or not."""
    value = draw(st.sampled_from([value for value in values if value]))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(value)))
        end = draw(st.integers(start, len(value)))
        value = value[:start] + draw(st.sampled_from("*?")) + value[end:]
    return value


@st.composite
def names(draw):
    """In any case, one component group or all of them, more or less of it."""
    value = draw(st.sampled_from(ALL_NAMES))
    if "=" in value and draw(st.booleans()):
        value = draw(st.sampled_from(value.split("=")))
    value = draw(st.sampled_from([str, str.upper, str.lower]))(value)
    shape = draw(st.sampled_from(["as it is", "family", "family*", "family^*", "wild"]))
    family = value.partition("^")[0]
    if shape == "wild":
        return draw(wild([value]))
    return {"as it is": value, "family": family, "family*": family + "*", "family^*": family + "^*"}[shape]


@st.composite
def ranges(draw, values):
    lower, upper = sorted(draw(st.sampled_from([value for value in values if value])) for _ in range(2))
    return draw(st.sampled_from([lower, f"{lower}-{upper}", f"{lower}-", f"-{upper}"]))


@st.composite
def cases(draw):
    instances = draw(archives())
    queries = []
    for _ in range(QUERIES):
        model = draw(st.sampled_from([PATIENT_ROOT, STUDY_ROOT]))
        level = draw(st.sampled_from(model.levels))
        queries.append((model, level, draw(identifiers(instances, level, model))))
    return Case(instances, draw(st.sampled_from([IMPLICIT, EXPLICIT])), draw(st.booleans()), tuple(queries))


# --- PS3.4 §C.2.2.2, slowly ---------------------------------------------------------------------------------


def entities(instances, level):
    """What a level has: a data set of the attributes of the level and those above for each unique key."""
    found = {}
    modalities = defaultdict(set)
    for instance in instances:
        if instance.get("Modality"):
            modalities[instance.StudyInstanceUID].add(instance.Modality)
    for instance in instances:
        entity = Dataset()
        for each in LEVELS[: LEVELS.index(level) + 1]:
            for name in ATTRIBUTES[each]:
                if name in instance:
                    entity[name] = instance[name]
        if level != "PATIENT":
            entity.ModalitiesInStudy = sorted(modalities[instance.StudyInstanceUID])
        found.setdefault(instance.get(UNIQUE_KEYS[level]), entity)
    return found


def matches(identifier, entity, *, empty_matches):
    return all(
        element_matches(key, entity, empty_matches=empty_matches)
        for key in identifier
        if key.keyword not in ("SpecificCharacterSet", "QueryRetrieveLevel")
    )


def element_matches(key, entity, *, empty_matches):
    if key.VR == "SQ":
        return sequence_matches(key, entity, empty_matches=empty_matches)
    asked, stored = values_of(key), values_of(element_of(entity, key.keyword))
    if not asked or asked == ["*"]:
        return True  # §C.2.2.2.3
    if not stored:
        # §C.2.2.1.2 leaves it to the archive, which has a switch for it; UIDs are never without value.
        return empty_matches
    return any(value_matches(key.VR, one, other) for one in asked for other in stored)


def sequence_matches(key, entity, *, empty_matches):
    """§C.2.2.2.6: all keys of the item in one item of the entity."""
    if not key.value or all(
        not values_of(element) or values_of(element) == ["*"] for element in key.value[0]
    ):
        return True
    items = entity.get(key.keyword) or []
    if not items:
        return empty_matches
    return any(matches(key.value[0], item, empty_matches=empty_matches) for item in items)


def element_of(dataset, name):
    return dataset.get(tag_for_keyword(name))  # by tag it is the element, by keyword its value


def values_of(element):
    if element is None or element.is_empty:
        return []
    several = element.value if element.VM > 1 else [element.value]
    return [text for value in several if (text := str(value).strip())]


def value_matches(vr, asked, stored):
    if vr == "PN":
        return name_matches(asked, stored)
    if vr in ("DA", "TM", "DT"):
        return moment_matches(vr, asked, stored)
    if vr == "IS":
        return int(asked) == int(stored)
    if vr == "UI":
        return asked == stored  # §C.2.2.2.2: any one of the list
    return pattern(asked).fullmatch(stored) is not None


def pattern(text):
    """§C.2.2.2.4; without wild cards §C.2.2.2.1."""
    wild_cards = {"*": ".*", "?": "."}
    return re.compile("".join(wild_cards.get(each, re.escape(each)) for each in text), re.DOTALL)


def name_matches(asked, stored):
    """Case does not matter, and a name may end in any number of delimiters (PS3.5 §6.2.1.1)."""
    asked_groups, stored_groups = asked.lower().split("="), stored.lower().split("=")
    if len(asked_groups) == 1:
        return any(group_matches(asked_groups[0], group) for group in stored_groups if group)
    stored_groups += [""] * 3
    return all(
        group_matches(one, other) for one, other in zip(asked_groups, stored_groups, strict=False) if one
    )


def group_matches(asked, stored):
    asked, stored = asked.rstrip("^"), stored.rstrip("^")
    return any(pattern(asked).fullmatch(stored + "^" * count) for count in range(5))


def moment_matches(vr, asked, stored):
    """§C.2.2.2.5: from the beginning of the one to the end of the other, both included; §C.2.2.2.1: the same moment."""
    begin, _ = interval(vr, stored)
    if "-" not in asked:
        return interval(vr, asked)[0] == begin
    lower, upper = asked.split("-")
    return (not lower or interval(vr, lower)[0] <= begin) and (not upper or begin <= interval(vr, upper)[1])


def interval(vr, text):
    """The first and the last microsecond that a value of any precision stands for."""
    offset = timedelta()
    if vr == "DT" and "+" in text:
        text, _, zone = text.partition("+")
        offset = timedelta(hours=int(zone[:2]), minutes=int(zone[2:]))
    if vr == "TM":
        text = "20000101" + text
    digits, _, fraction = text.partition(".")
    begin = datetime.strptime(
        (digits + "0101"[max(0, len(digits) - 4) :])[:8] if len(digits) < 8 else digits[:8], "%Y%m%d"
    )
    begin = begin.replace(tzinfo=UTC) - offset
    for at, unit in ((8, "hours"), (10, "minutes"), (12, "seconds")):
        begin += timedelta(**{unit: int(digits[at : at + 2] or 0)})
    begin += timedelta(microseconds=int(fraction.ljust(6, "0") or 0))
    length = {
        8: timedelta(days=1),
        10: timedelta(hours=1),
        12: timedelta(minutes=1),
        14: timedelta(seconds=1),
    }
    last = length[len(digits)] if not fraction else timedelta(microseconds=10 ** (6 - len(fraction)))
    return begin, begin + last - timedelta(microseconds=1)


def expected_answers(case, model, level, identifier):
    """By unique key: the attributes of each answer, as `described` gives them."""
    found = {}
    for key, entity in entities(case.instances, level).items():
        if not matches(identifier, entity, empty_matches=case.empty_matches):
            continue
        answer = {}
        for element in identifier:
            if element.keyword in ("SpecificCharacterSet", "QueryRetrieveLevel"):
                continue
            if element.VR == "SQ":
                answer[element.keyword] = expected_items(case, element, entity)
            else:
                answer[element.keyword] = described(element_of(entity, element.keyword))
        for name in unique_keys(model, level):
            answer[name] = described(element_of(entity, name))
        found[key] = answer
    return found


def expected_items(case, key, entity):
    """§C.2.2.2.6: the items that match, with what the key's item asks for, or all of each when it has no item."""
    items = entity.get(key.keyword) or []
    if not key.value or not len(key.value[0]):
        return [{element.keyword: described(element) for element in item} for item in items]
    asked = key.value[0]
    return [
        {element.keyword: described(element_of(item, element.keyword)) for element in asked}
        for item in items
        if matches(asked, item, empty_matches=case.empty_matches)
    ]


def unique_keys(model, level):
    names = [UNIQUE_KEYS[each] for each in model.levels[: model.levels.index(level) + 1]]
    return [*names, "SOPClassUID"] if level == "IMAGE" else names


def described(element):
    """The values of an element: numbers without leading zeros, in an order if it means something."""
    if element is not None and element.VR == "SQ":
        return [{inner.keyword: described(inner) for inner in item} for item in element.value]
    values = values_of(element)
    if element is not None and element.VR == "IS":
        values = [str(int(value)) for value in values]
    return sorted(values) if element is not None and element.keyword == "ModalitiesInStudy" else values


def actual_answers(answers, model, level):
    """What came, in the same form; what is in every answer is checked and left out."""
    found = {}
    for answer in answers:
        assert answer.QueryRetrieveLevel == level
        assert answer.RetrieveAETitle == "HARMONY_SCP"
        key = answer[UNIQUE_KEYS[level]].value
        assert key not in found, "an entity came twice"
        found[key] = {
            element.keyword: described(element)
            for element in answer
            if element.keyword not in ("QueryRetrieveLevel", "RetrieveAETitle", "SpecificCharacterSet")
        }
    return found


@pytest.fixture(autouse=True)
def pynetdicom_keeps_its_responses(require_peer, monkeypatch):
    """Its thread beside an association takes messages from the same queue as the caller, and now and then a response
    is lost between the two: that it has stopped is asked before it has. A requestor can do without it."""
    require_peer("pynetdicom")
    from pynetdicom.association import Association

    def pause(association):
        association._is_paused = True

    monkeypatch.setattr(Association, "_run_reactor", pause)


@pytest.fixture(autouse=True)
def keys_are_no_values(monkeypatch):
    """pydicom takes wild cards and ranges for bad values."""
    for mode in ("_reading_validation_mode", "_writing_validation_mode"):
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.IGNORE)


# --- The test -----------------------------------------------------------------------------------------------

QUERIES = 10
"""Of one archive; all through pynetdicom, some of them through findscu, which takes a process each."""
THROUGH_FINDSCU = 3


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ],
)
@given(case=cases())
def test_any_query_of_any_archive(case, run_tool, free_ports):
    with tempfile.TemporaryDirectory() as folder:
        answers = asyncio.run(ask(case, Path(folder), free_ports(1)[0], run_tool))
    for number, (model, level, identifier) in enumerate(case.queries):
        expected = expected_answers(case, model, level, identifier)
        for peer, found in answers[number].items():
            assert actual_answers(found, model, level) == expected, (peer, level, identifier)


async def ask(case, folder, port, run_tool):
    """Store everything and ask everything: for each query the answers by peer."""
    path = folder / "config.toml"
    path.write_text(
        f"""
        [proxy]
        id = "interop"
        [storage.options]
        path = "{folder / "storage"}"
        [network.default.dicom]
        bind_address = "127.0.0.1"
        bind_port = {port}
        [pipelines.scp]
        networks = ["default"]
        endpoints = ["scp"]
        backends = []
        [endpoints.scp]
        service = "dicom_scp"
        [endpoints.scp.options]
        local_aet = "HARMONY_SCP"
        min_free_bytes = 0
        match_empty_values = {str(case.empty_matches).lower()}
        """
    )
    gateway = Gateway(load(path, env={}))
    await gateway.start()
    try:
        contexts = propose_contexts([(uid, [case.syntax]) for uid in (CT, MR, SC)])
        async with associate("127.0.0.1", port, called_ae_title="HARMONY_SCP", contexts=contexts) as scu:
            for dataset in case.instances:
                data = encode(dataset, case.syntax)
                instance = Instance(dataset.SOPClassUID, dataset.SOPInstanceUID, case.syntax, data)
                assert (await scu.store(instance)).status == 0x0000
        answers = [{"pynetdicom": found} for found in await asyncio.to_thread(ask_pynetdicom, case, port)]
        for number, (model, _, identifier) in enumerate(case.queries[:THROUGH_FINDSCU]):
            answers[number]["findscu"] = await asyncio.to_thread(
                ask_findscu, model, identifier, port, folder / str(number), run_tool
            )
    finally:
        await gateway.stop(0.0)
    return answers


def encode(dataset, syntax):
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(buffer, dataset)
    return buffer.getvalue()


def ask_pynetdicom(case, port):
    from pynetdicom import AE

    entity = AE()
    for model in (PATIENT_ROOT, STUDY_ROOT):
        entity.add_requested_context(model.find, case.syntax)
    association = entity.associate("127.0.0.1", port, ae_title="HARMONY_SCP")
    assert association.is_established
    try:
        found = []
        for model, _, identifier in case.queries:
            responses = list(association.send_c_find(identifier, model.find))
            assert [status.Status for status, _ in responses[:-1]] == [0xFF00] * (len(responses) - 1)
            assert responses[-1][0].Status == 0x0000, identifier
            found.append([answer for _, answer in responses[:-1]])
        return found
    finally:
        association.release()


def ask_findscu(model, identifier, port, folder, run_tool):
    folder.mkdir()
    path = folder / "identifier"
    identifier = pydicom.Dataset(identifier)
    identifier.file_meta = FileMetaDataset()
    identifier.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    identifier.save_as(path, implicit_vr=False, little_endian=True)
    root = "-P" if model is PATIENT_ROOT else "-S"
    run_tool("findscu", root, "-X", "-od", folder, "-aec", "HARMONY_SCP", "127.0.0.1", port, path)
    return [pydicom.dcmread(each) for each in sorted(folder.glob("rsp*.dcm"))]
