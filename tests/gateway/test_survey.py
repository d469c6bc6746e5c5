"""What a PACS has: one query where it can be believed, else from the study down."""

import pytest

from harmony.archive.index import UniqueKeys
from harmony.archive.levels import Level
from harmony.dicom.json_model import texts_of
from harmony.dimse.scu import NoPresentationContext
from harmony.dimse.status import DimseError
from harmony.gateway.backend import Retrieve
from harmony.gateway.survey import LISTED_UIDS, Survey, survey
from harmony.ul.errors import ConnectFailed

CT = "1.2.840.10008.5.1.4.1.1.2"
TAGS = {"patient": 0x00100020, "study": 0x0020000D, "series": 0x0020000E, "instance": 0x00080018}
BELOW = {
    Level.STUDY: ("patient", "study"),
    Level.SERIES: ("study", "series"),
    Level.IMAGE: ("study", "series", "instance"),
}


class Answers:
    """Answers queries from (patient, study, series, instance); `asked` has the level and keys of each.

    relational: answers at the IMAGE level without the keys of a hierarchical search; returns: attributes it returns.
    """

    def __init__(self, *instances, relational=True, errors=(), images=True, returns=()):
        self.instances = instances
        self.relational = relational
        self.errors = dict(errors)
        self.images = images
        self.returns = dict(returns)
        self.asked = []

    async def __call__(self, query):
        keys = {
            name: values
            for name, tag in TAGS.items()
            if (values := [each for each in texts_of(query.identifier, tag) if each])
        }
        self.asked.append((query.level, keys))
        if query.level in self.errors:
            raise self.errors[query.level]
        if query.level is Level.IMAGE and not (
            self.images and (self.relational or {"study", "series"} <= keys.keys())
        ):
            return
        seen = set()
        for each in self.instances:
            entity = dict(zip(TAGS, each, strict=True))
            names = BELOW[query.level] + (("patient",) if self.relational else ())
            answer = tuple((name, entity[name]) for name in names)
            if answer in seen or any(entity[name] not in values for name, values in keys.items()):
                continue
            seen.add(answer)
            model = {f"{TAGS[name]:08X}": {"Value": [value]} for name, value in answer}
            if query.level is Level.IMAGE:
                model["00080016"] = {"Value": [CT]}
            yield model | self.returns


ONE = ("P1", "1", "1.1", "1.1.1")
OTHER = ("P1", "1", "1.2", "1.2.1")
STUDY_1 = UniqueKeys(None, ["1"])


async def asked(answers, keys, **more):
    return await survey(answers, Retrieve(Level.STUDY, keys, **more))


async def test_one_query_is_enough():
    answers = Answers(ONE, OTHER)
    found = await asked(answers, STUDY_1)
    assert (found.total, list(found.sop_instance_uids)) == (2, ["1.1.1", "1.2.1"])
    assert list(found.sop_classes) == [CT]
    assert answers.asked == [(Level.IMAGE, {"study": ["1"]})]


async def test_level_by_level():
    answers = Answers(ONE, OTHER, ("P1", "2", "2.1", "2.1.1"), relational=False)
    found = await asked(answers, UniqueKeys(["P1"]))
    assert list(found.sop_instance_uids) == ["1.1.1", "1.2.1", "2.1.1"]
    assert answers.asked == [
        (Level.IMAGE, {"patient": ["P1"]}),
        (Level.STUDY, {"patient": ["P1"]}),
        (Level.SERIES, {"study": ["1"]}),
        (Level.IMAGE, {"study": ["1"], "series": ["1.1"]}),
        (Level.IMAGE, {"study": ["1"], "series": ["1.2"]}),
        (Level.SERIES, {"study": ["2"]}),
        (Level.IMAGE, {"study": ["2"], "series": ["2.1"]}),
    ]


async def test_some_of_a_series_and_some_of_a_study():
    answers = Answers(ONE, OTHER, relational=False)
    found = await asked(answers, UniqueKeys(None, ["1"], ["1.2"]))
    assert list(found.sop_instance_uids) == ["1.2.1"]
    assert answers.asked == [(Level.IMAGE, {"study": ["1"], "series": ["1.2"]})]
    found = await asked(answers, UniqueKeys(None, ["1"], None, ["1.2.1"]))
    assert list(found.sop_instance_uids) == ["1.2.1"]


async def test_in_patient_root_the_patient_is_asked_for_at_each_level():
    answers = Answers(ONE, relational=False)
    await asked(answers, UniqueKeys(["P1"], ["1"]), patient_root=True)
    assert all(keys["patient"] == ["P1"] for _, keys in answers.asked)
    assert answers.asked[-1] == (Level.IMAGE, {"patient": ["P1"], "study": ["1"], "series": ["1.1"]})


@pytest.mark.parametrize("keys", [STUDY_1, UniqueKeys(None, ["1"], ["1.1"]), UniqueKeys(["P1"])])
async def test_nothing_is_there(keys):
    found = await asked(Answers(), keys)
    assert (found.total, found.sop_instance_uids) == (0, {})


@pytest.mark.parametrize("level", [Level.IMAGE, Level.SERIES, Level.STUDY])
async def test_a_level_that_is_refused(level):
    answers = Answers(ONE, relational=False, errors={level: DimseError(0xA900)})
    found = await asked(answers, STUDY_1)
    assert found == Survey()


async def test_instances_that_cannot_be_found():
    """The study names its SOP classes perhaps; an instance that was asked for is not there."""
    answers = Answers(ONE, images=False, returns={"00080062": {"Value": [CT]}})
    found = await asked(answers, STUDY_1)
    assert (found.total, list(found.sop_classes)) == (None, [CT])
    assert (await asked(answers, UniqueKeys(None, ["1"], None, ["9"]))).total == 0
    assert (await asked(answers, UniqueKeys(None, ["1"], ["1.9"]))).total == 0


async def test_a_pacs_that_cannot_be_asked():
    answers = Answers(errors={Level.IMAGE: NoPresentationContext("none")})
    assert await asked(answers, STUDY_1) == Survey()
    with pytest.raises(ConnectFailed):
        await asked(Answers(errors={Level.IMAGE: ConnectFailed("down")}), STUDY_1)


async def test_very_many_are_only_counted():
    answers = Answers(*(("P1", "1", "1.1", str(number)) for number in range(LISTED_UIDS + 1)))
    found = await asked(answers, STUDY_1)
    assert (found.total, found.sop_instance_uids) == (LISTED_UIDS + 1, None)


async def test_keys_are_completed_where_there_is_one_value():
    series = UniqueKeys(None, None, ["1.1"])
    found = await asked(Answers(ONE), series)
    assert found.complete(series, patient_root=False) == UniqueKeys(None, ["1"], ["1.1"])
    assert found.complete(series, patient_root=True) == UniqueKeys(["P1"], ["1"], ["1.1"])
    instance = UniqueKeys(None, None, None, ["1.1.1"])
    assert found.complete(instance, patient_root=False) == UniqueKeys(None, ["1"], ["1.1"], ["1.1.1"])
    both = UniqueKeys(None, None, None, ["1.1.1", "1.2.1"])
    found = await asked(Answers(ONE, OTHER), both)
    assert found.complete(both, patient_root=False) == both
    assert found.complete(STUDY_1, patient_root=False) == STUDY_1
