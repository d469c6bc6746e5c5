"""Which files are sent: told by what is in them."""

import os

import pytest

from harmony.dimse import Part10Error, encode_file_meta
from harmony.send import Found, PassedOver, Unreadable, count, find_files

CT = "1.2.840.10008.5.1.4.1.1.2"
DICOMDIR = "1.2.840.10008.1.3.10"
EXPLICIT = "1.2.840.10008.1.2.1"
# (0008,0016) UI CT Image Storage, (0008,0018) UI 1.2.3
DATA = b"\x08\x00\x16\x00UI\x1a\x00" + CT.encode() + b"\0" + b"\x08\x00\x18\x00UI\x06\x001.2.3\0"


def part10(*, sop_class=CT, instance="1.2.3", data=DATA):
    meta = encode_file_meta(
        transfer_syntax_uid=EXPLICIT,
        media_storage_sop_class_uid=sop_class,
        media_storage_sop_instance_uid=instance,
    )
    return bytes(meta) + data


# Preamble, DICM, and (0002,0010) UI alone.
WITHOUT_UIDS = bytes(128) + b"DICM\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"


def by_path(items):
    return {item.path: item for item in items}


def test_files_are_known_by_their_content(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    image = tmp_path / "a" / "b" / "no-extension"
    image.write_bytes(part10())
    text = tmp_path / "a" / "note.dcm"
    text.write_text("not DICOM, whatever it is called")
    directory = tmp_path / "DICOMDIR"
    directory.write_bytes(part10(sop_class=DICOMDIR))
    empty = tmp_path / "empty"
    empty.touch()
    found = by_path(find_files([tmp_path]))
    offset = len(part10()) - len(DATA)
    assert found == {
        str(image): Found(str(image), CT, "1.2.3", EXPLICIT, offset),
        str(text): PassedOver(str(text)),
        str(directory): PassedOver(str(directory)),
        str(empty): PassedOver(str(empty)),
    }
    assert count([tmp_path], stopped=lambda: False) == 4
    assert count([tmp_path], stopped=lambda: True) is None


def test_a_file_may_be_named_itself(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(part10())
    assert [item.path for item in find_files([path, str(path)])] == [str(path)] * 2


def test_links_pipes_and_folders_that_link_back(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(part10())
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    kinds = {os.path.basename(item.path): type(item) for item in find_files([tmp_path])}
    assert kinds == {
        "x": Found,
        "link": Found,
        "loop": PassedOver,
        "nowhere": PassedOver,
        "pipe": PassedOver,
    }


def test_the_data_set_says_it_where_the_file_meta_does_not(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(WITHOUT_UIDS + DATA)
    assert list(find_files([path])) == [Found(str(path), CT, "1.2.3", EXPLICIT, len(WITHOUT_UIDS))]


@pytest.mark.parametrize(
    "content",
    [
        bytes(128) + b"DICM",
        bytes(128) + b"DICM\x02\x00\x02\x00UI\x02\x001\0\x08\x00",  # no transfer syntax
        WITHOUT_UIDS + b"\x08\x00\x60\x00CS\x02\x00CT",
        WITHOUT_UIDS,
    ],
)
def test_dicom_that_does_not_say_what_it_is_is_an_error(tmp_path, content):
    path = tmp_path / "x"
    path.write_bytes(content)
    (item,) = find_files([path])
    assert isinstance(item, Unreadable)
    assert isinstance(item.error, Part10Error)


def test_what_is_not_there_is_an_error(tmp_path):
    (item,) = find_files([tmp_path / "missing"])
    assert isinstance(item, Unreadable)
    assert isinstance(item.error, FileNotFoundError)


def test_files_are_found_one_by_one(tmp_path):
    for number in range(5):
        (tmp_path / str(number)).write_bytes(part10())
    items = find_files([tmp_path])
    next(items)
    for path in tmp_path.iterdir():
        path.unlink()
    # The folder was listed; what is in it is looked at only now.
    assert all(isinstance(item, Unreadable) for item in items)
