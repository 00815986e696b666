"""A rendezvous port that somebody else has: one line from ranks that need it; a process alone needs none."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.drill


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which another program listens."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use_is_one_line(launch, tmp_path, taken):
    ranks = launch(tmp_path / "run", port=taken)
    while 0 not in ranks.ended:
        codes = ranks.wait(1)
    assert codes == [2, None], "rank 1 waits for the launcher to end it"
    told = ranks.told()
    assert len(told) == 1, told
    assert told[0].startswith(f"error: rank 0 cannot meet the others at 127.0.0.1:{taken}: that port is in use; choose")
    assert not (tmp_path / "run").exists()


def test_one_process_needs_no_port(launch, tmp_path, taken):
    ranks = launch(tmp_path / "run", "--max_steps", "1", world_size=1, port=taken)
    assert ranks.wait() == [3], ranks.told()
