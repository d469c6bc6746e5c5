"""Whose images an envelope holds, in every form of its metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmony.jmix.description import DescribedStudy, described_studies

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
PATIENT = {"id": "4711", "name": {"family": "Yamada", "given": ["Tarou"], "text": "Tarou Yamada"}}
SERIES = [
    {
        "series_uid": "1.2.3.1",
        "instance_count": 2,
        "instances": [{"sop_class_uid": CT}, {"sop_class_uid": CT}],
    },
    {"series_uid": "1.2.3.2", "instance_count": 1, "instances": [{"sop_class_uid": MR}]},
]


def test_a_map_of_studies() -> None:
    studies = {
        "1.2.3": {"study_uid": "1.2.3", "patient_name": "Yamada^Tarou", "series": SERIES},
        "1.2.4": {"series": []},
    }
    assert described_studies({"patient": PATIENT, "studies": studies}) == (
        DescribedStudy("1.2.3", "4711", "Yamada^Tarou", {CT: 2, MR: 1}),
        DescribedStudy("1.2.4", "4711", "Tarou Yamada", {}),
    )


def test_one_study_whose_instances_are_only_counted() -> None:
    """The specification's form."""
    series = [{"series_uid": "1.2.3.1", "instance_count": 2}, {"series_uid": "1.2.3.2", "instance_count": 5}]
    document = {"patient": {"id": "UNKNOWN"}, "studies": {"study_uid": "1.2.3", "series": series}}
    assert described_studies(document) == (DescribedStudy("1.2.3", "", "", {"": 7}),)


def test_a_list_of_studies() -> None:
    studies = [{"study_uid": "1.2.3", "series": SERIES[:1]}, {"study_uid": "../x"}, "1.2.5"]
    assert described_studies({"studies": studies}) == (DescribedStudy("1.2.3", "", "", {CT: 2}),)


@pytest.mark.parametrize("studies", [None, [], {}, 7, "1.2.3", [None], {"": {}}, {"study_uid": 3}])
def test_no_studies(studies) -> None:
    assert described_studies({"studies": studies}) == ()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["1.2", "1.3"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "patient",
                    "id",
                    "name",
                    "text",
                    "studies",
                    "study_uid",
                    "series",
                    "instances",
                    "instance_count",
                    "1.2",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@given(st.dictionaries(st.sampled_from(["patient", "studies"]), JSON))
def test_whatever_others_have_written(document) -> None:
    for study in described_studies(document):
        assert isinstance(study.patient_id, str)
        assert isinstance(study.patient_name, str)
        assert all(count > 0 for count in study.instances.values())
