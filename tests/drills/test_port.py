"""The rendezvous port: in use by somebody else, and not open to other machines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from drill import AtStep

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


@dataclass(frozen=True)
class NoteListeners:
    """Writes the addresses at which this process listens."""

    path: Path

    def __call__(self) -> None:
        own = {os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
        found = []
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                    found.append(fields[1].split(":")[0])
        self.path.write_text(" ".join(found))


def test_ranks_of_one_machine_listen_at_loopback_only(launch, tmp_path):
    paths = [tmp_path / str(rank) for rank in range(2)]
    sabotage = {rank: AtStep(2, NoteListeners(path)) for rank, path in enumerate(paths)}
    ranks = launch(tmp_path / "run", "--max_steps", "2", sabotage=sabotage)
    assert ranks.wait() == [3, 3], ranks.told()
    listeners = [path.read_text().split() for path in paths]
    assert len(listeners[0]) > len(listeners[1]) > 0, "rank 0 keeps the store as well"
    assert {*listeners[0], *listeners[1]} == {"0100007F"}
