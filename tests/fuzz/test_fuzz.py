"""Random damage to what users and disks hand to the program ends in one line, or does no harm.

A few cases of every kind; ``benchmarks/fuzz.py`` runs thousands, these among them.
"""

from __future__ import annotations

import shutil

import pytest
from fuzz_cases import KINDS, make, run_here, warm_up
from fuzz_guard import Broken, guarded
from fuzz_material import make_material
from fuzz_mutations import CANARY

CASES = 6  # of each kind


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    home = tmp_path_factory.mktemp("fuzz")
    made = make_material(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIST_PRUNE_DATA", str(home / "data"))
        warm_up(made, home / "warm")
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_damage_works_or_ends_in_one_line_and_nothing_is_executed(material, tmp_path, kind):
    for number in range(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome, told = run_here(make(material, kind, number, 1, folder), folder)
        assert outcome in ("works", "one line"), f"{kind}:{number}\n{told}"
        assert not list(folder.rglob(CANARY))
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "deed",
    [
        lambda folder: exec("1 + 1"),
        lambda folder: __import__("os").system("true"),
        lambda folder: __import__("pickle").loads(b"cos\nsystem\n."),
        lambda folder: (folder.parent / "elsewhere").write_text("x"),
    ],
    ids=["exec", "os.system", "pickle", "a file elsewhere"],
)
def test_the_guard_notices(tmp_path, deed):
    (tmp_path / "case").mkdir()
    with pytest.raises(Broken), guarded(tmp_path / "case"):
        deed(tmp_path / "case")
