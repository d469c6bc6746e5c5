"""Every case of the robustness table, R00 to R40, has a test that is named after it; so has every habit, F01 to F40."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CASES = [f"r{number:02}" for number in range(41)]
TESTS = Path(__file__).parents[1]
ENDS_THE_GATEWAY = "r40"
"""It is in tests/system, which starts one for each test."""

HABITS = {
    1: "test_a_connection_opened_and_closed_is_nobodys_business",  # health checks
    2: "test_r04_another_protocol_on_the_dicom_port_is_named",
    3: "test_r11_ae_titles_as_they_come",
    4: "test_r11_any_called_title_where_the_policy_is_any",
    5: "test_who_may_associate_and_for_what",
    6: "test_f06_only_bit_0_of_the_protocol_version_counts",
    7: "test_r00_unknown_items_are_skipped_by_their_length",
    8: "test_r07_odd_transfer_syntaxes_never_refuse_the_association",
    9: "test_f09_a_context_for_each_transfer_syntax",
    10: "test_r08_128_contexts",
    11: "test_r15_fragments_that_cannot_follow_are_aborted",
    12: "test_f12_data_in_another_transfer_syntax_than_negotiated",
    13: "test_f13_a_refusal_without_transfer_syntax",
    14: "test_f14_more_roles_than_were_proposed_are_not_ours",
    15: "test_r34_instances_without_negotiated_roles",
    16: "test_r10_maximum_lengths",
    17: "test_f17_more_than_the_announced_maximum_is_taken",
    18: "test_f18_fragments_of_two_bytes",
    19: "test_r13_messages_in_any_pieces",
    20: "test_f20_a_command_without_last_fragment_ends_by_its_deadline",
    21: "test_r17_command_sets_as_they_come_in_the_field",
    22: "test_r20_a_data_set_that_was_not_announced_is_aborted",
    23: "test_f23_message_ids_of_zero_and_always_the_same",
    24: "test_f24_f25_responses_that_name_something_else",
    25: "test_f24_f25_responses_that_name_something_else",
    26: "test_f26_a_status_of_no_class_is_a_failure",
    27: "test_an_idle_association_is_used_again",  # by a pool, instead of one for each image
    28: "test_f28_an_abort_after_the_last_response_loses_nothing",
    29: "test_f29_a_close_instead_of_the_end_of_a_release_is_one",
    30: "test_r23_a_release_right_behind_a_request_comes_after_its_answer",
    31: "test_r23_release_collision_as_acceptor",
    32: "test_instances_are_signs_of_life",  # long silences of an archive
    33: "test_one_that_was_idle_for_long_has_to_answer_first",  # behind a firewall that forgot it
    34: "test_f34_queries_that_do_not_keep_to_the_hierarchy",
    35: "test_f35_f37_a_data_set_that_is_wrong_is_kept_and_found",
    36: "test_r26_many_pending_responses_wait_for_a_slow_reader",
    37: "test_f35_f37_a_data_set_that_is_wrong_is_kept_and_found",
    38: "test_f38_another_object_under_the_same_uid_does_not_replace_it",
    39: "test_f39_a_whole_file_as_data_set_is_stored_without_its_head",
    40: "test_json_as_others_write_it",  # and the rest of its module
}


def names_of_tests(folder: Path) -> Iterator[str]:
    """The names of all tests below a folder."""
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield node.name


def by_case(folder: Path) -> dict[str, list[str]]:
    """The tests below a folder by the cases in their names, of which one may have several."""
    found: dict[str, list[str]] = {}
    for name in names_of_tests(folder):
        for case in re.findall(r"(?<=_)r\d\d(?=_)", name):
            found.setdefault(case, []).append(name)
    return found


def test_the_table_is_complete() -> None:
    assert sorted(by_case(TESTS)) == CASES


@pytest.mark.parametrize("case", CASES)
def test_a_running_gateway_is_put_to_it(case: str) -> None:
    folder = TESTS / ("system" if case == ENDS_THE_GATEWAY else "robustness")
    assert case in by_case(folder)


def test_every_habit_has_its_test() -> None:
    assert list(HABITS) == list(range(1, 41))
    assert set(HABITS.values()) - set(names_of_tests(TESTS)) == set()
