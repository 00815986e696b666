"""Requests to stop, and what happens to signal handlers."""

import signal

import pytest

from dist_prune.runtime.signals import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_without_a_reason_it_goes_on():
    with StopRequest() as stop:
        for _ in range(1000):
            stop.count_step()
        assert stop.reason is None


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_allowed_step_sets_the_reason(steps):
    stop = StopRequest(max_steps=steps)
    for _ in range(steps - 1):
        stop.count_step()
        assert stop.reason is None
    stop.count_step()
    assert stop.reason == f"--max_steps {steps} reached"


def test_hours_are_counted_from_the_start(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stop = StopRequest(max_hours=0.5)
    now[0] += 1799
    stop.count_step()
    assert stop.reason is None
    now[0] += 1
    stop.count_step()
    assert stop.reason == "--max_hours reached"


@pytest.fixture
def heard():
    """SIGHUP, which tests that were started under nohup ignore, as the program would."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda s: s.name)
def test_a_signal_sets_the_reason_and_interrupts_nothing(number, heard):
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.reason == f"received {number.name}"


def test_one_ctrl_c_that_arrives_twice_does_not_interrupt():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.reason == "received SIGINT"


def test_a_second_ctrl_c_interrupts(monkeypatch):
    monkeypatch.setattr("dist_prune.runtime.signals._ONE_KEY_PRESS", 0.0)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.reason == "received SIGINT"


def test_an_interruption_is_what_the_program_makes_of_it_and_what_it_sets_then_stays(monkeypatch):
    monkeypatch.setattr("dist_prune.runtime.signals._ONE_KEY_PRESS", 0.0)

    def ignore_others(number, frame):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ignore_others)
    try:
        with StopRequest():
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_closed_terminal_stops_nothing_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.reason is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_second_polite_signal_waits_too(number):
    """Launchers repeat theirs."""
    with StopRequest() as stop:
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.reason == f"received {number.name}"


@pytest.mark.parametrize("before", ["max_steps", "SIGTERM"])
def test_a_first_ctrl_c_does_not_interrupt_a_stop_that_is_being_saved(before):
    with StopRequest(max_steps=1) as stop:
        if before == "max_steps":
            stop.count_step()
        else:
            signal.raise_signal(signal.SIGTERM)
        reason = stop.reason
        assert reason is not None
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            pytest.fail("the stop that was under way was interrupted")


def test_old_handlers_are_put_back():
    before = handlers()
    with StopRequest():
        assert handlers() != before
    assert handlers() == before


def test_old_handlers_are_put_back_after_an_error():
    before = handlers()
    with pytest.raises(RuntimeError, match="in training"), StopRequest():
        raise RuntimeError("in training")
    assert handlers() == before


def test_handlers_stay_untouched_until_it_is_entered():
    before = handlers()
    StopRequest(max_steps=3)
    assert handlers() == before
