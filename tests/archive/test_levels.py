"""Which attribute belongs to which level."""

import pytest

from harmony.archive.levels import Level, level_of


@pytest.mark.parametrize(
    ("tag", "level"),
    [  # PS3.3 §C.7.1.1, §C.7.2.1, §C.7.3.1 and PS3.4 §C.3.4
        ("00100010", Level.PATIENT),
        ("00201200", Level.PATIENT),
        ("0020000D", Level.STUDY),
        ("00101010", Level.STUDY),
        ("00080061", Level.STUDY),
        ("00201208", Level.STUDY),
        ("00080060", Level.SERIES),
        ("00201209", Level.SERIES),
        ("00080018", Level.IMAGE),
        ("00280010", Level.IMAGE),
        ("00231002", Level.IMAGE),
    ],
)
def test_level_of_an_attribute(tag, level):
    assert level_of(tag) is level
