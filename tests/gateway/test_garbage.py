"""What has been set aside is not collected, until it is looked at again."""

import gc
import weakref

from harmony.gateway.garbage import set_aside


class Node:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_exists_is_passed_over_until_the_next_time() -> None:
    node = Node()
    gone = weakref.ref(node)
    try:
        set_aside()
        assert gc.get_freeze_count() > 0
        del node
        gc.collect()
        assert gone() is not None
        set_aside()
        assert gone() is None
    finally:
        gc.unfreeze()
