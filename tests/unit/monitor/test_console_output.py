"""What people read on the console: few lines, numbers they understand, and never an invented one."""

import sys
from pathlib import Path

import pytest

from dist_prune.monitor import formatting
from dist_prune.monitor.console import ProgressBar, final_table
from dist_prune.monitor.records import SUMMARY_KEYS


def test_plain_lines_come_once_an_epoch_and_at_the_end(capsys):
    progress = ProgressBar(total_steps=40, every=1e9)
    for step in range(1, 41):
        progress.update(step, epoch=(step - 1) // 10 + 1, loss=1 / step if step % 10 == 1 else None)
    progress.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "step 1/40",
        "step 11/40",
        "step 21/40",
        "step 31/40",
        "step 40/40",
    ]


def test_plain_lines_come_whenever_the_time_is_over_and_show_everything_known(capsys):
    progress = ProgressBar(total_steps=40, every=0.0)
    progress.update(1, epoch=1, loss=2.0, accuracy=0.5, open_ratio=0.983, images_per_second=1234.4)
    progress.update(2, epoch=1)
    first, second = capsys.readouterr().err.splitlines()
    for line in (first, second):
        for text in ("epoch 1", "loss 2.0000", "accuracy 50.0 %", "open 98.3 %", "images/s 1,234", "left"):
            assert text in line


def test_the_time_left_counts_only_the_steps_of_this_process(monkeypatch, capsys):
    now = iter([0.0, 100.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    ProgressBar(total_steps=300, initial=100).update(200, epoch=2)  # 100 steps in 100 s, 100 to go
    assert "1 min 40 s left" in capsys.readouterr().err


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = ProgressBar(total_steps=10, initial=4)
    progress.update(5, epoch=1, loss=0.25)
    progress.line("saved step 5")
    progress.update(10, epoch=1)
    progress.close()
    captured = capsys.readouterr()
    assert "10/10" in captured.err
    assert "loss=0.2500" in captured.err
    assert captured.out == "saved step 5\n"


def test_the_final_table_is_written_for_people():
    summary = {
        "accuracy": 0.983,
        "accuracy_consensus": 0.98,
        "accuracy_sliced": 0.98,
        "macs": 20_610_000,
        "macs_dense": 41_220_000,
        "macs_ratio": 0.5,
        "parameters": 150_123,
        "parameters_dense": 272_474,
        "agreement": 0.99978,
        "units_flipped_by_rounding": 0,
        "max_abs_difference": 2.4e-6,
        "seconds_total": 97.3,
        "energy_joules": None,
        "world_size": 2,
    }
    table = final_table(summary, {"sliced network": Path("runs/x/sliced")})
    rows = dict(line.split("  ", 1) for line in table.splitlines())
    rows = {what: text.strip() for what, text in rows.items()}
    expected = {
        "accuracy, gates dynamic": "98.3 %",
        "MACs, dense": "41.22 M MACs",
        "MACs, sliced": "20.61 M MACs",
        "MACs, sliced / dense": "50.0 %",
        "parameters, sliced": "150.12 k",
        "agreement of samples with the consensus": "99.98 %",
        "units flipped by rounding": "0",
        "largest difference, masked - sliced output": "2.4e-06",
        "time": "1 min 37 s",
        "energy": "not measured",
        "sliced network": "runs/x/sliced",
    }
    assert {what: rows[what] for what in expected} == expected
    assert "FLOP" not in table


def test_what_was_not_measured_is_never_shown_as_zero():
    rows = formatting.result_rows(dict.fromkeys(SUMMARY_KEYS))
    assert {text for _, text in rows} == {"not measured"}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.percent(1.0), "100.0 %"),
        (formatting.percent(0.0), "0.0 %"),
        (formatting.percent(0.99996), "99.996 %"),
        (formatting.percent(0.0001), "0.01 %"),
        (formatting.count(512), "512"),
        (formatting.count(4.1e9, "MACs"), "4.10 G MACs"),
        (formatting.duration(4.21), "4.2 s"),
        (formatting.duration(59.97), "1 min 00 s"),
        (formatting.duration(3599.8), "1 h 00 min"),
        (formatting.energy(12300.0), "12.30 kJ (3.42 Wh)"),
    ],
)
def test_numbers_read_well(shown, expected):
    assert shown == expected


def test_the_final_table_says_which_operators_no_count_of_macs_holds():
    counted = dict.fromkeys(SUMMARY_KEYS) | {"macs_not_counted": []}
    incomplete = counted | {"macs_not_counted": ["aten::fft_rfft2"]}
    title = "MACs are incomplete"
    assert title not in dict(formatting.result_rows(counted))
    assert dict(formatting.result_rows(incomplete))[title] == "not counted: aten::fft_rfft2"
