"""TensorBoard's own reader finds what was written."""

import io
import sys
import threading
import time

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_prune.monitor import names, style
from dist_prune.monitor.tensorboard import TensorBoardLog


def read(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "tensors": 0})
    return events.Reload()


def points(events, tag):
    return [(event.step, round(event.value, 4)) for event in events.Scalars(tag)]


def test_scalars_and_pictures_can_be_read_back(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would now fail
    figure = style.new_figure(2, 1)
    figure.set_facecolor("#ff0000")
    log = TensorBoardLog(tmp_path, purge_step=None)
    log.scalars(1, {names.LOSS + "total": 2.5, names.LOSS + "macs": 0.0, names.SITE + "layer1.0": 0.25})
    log.scalars(2, {names.LOSS + "total": 1.5, names.LOSS + "macs": None})
    log.figure(names.MEAN_ACTIVATION_PICTURE, figure, step=2)
    log.close()
    events = read(tmp_path)
    assert points(events, "loss/total") == [(1, 2.5), (2, 1.5)]
    assert points(events, "loss/macs") == [(1, 0.0)]
    assert points(events, "sites/layer1.0") == [(1, 0.25)]
    (picture,) = events.Images("gates/mean_activation")
    pixels = np.asarray(Image.open(io.BytesIO(picture.encoded_image_string)))
    assert picture.step == 2
    assert pixels.shape == (100, 200, 3)
    assert (pixels == [255, 0, 0]).all()


def test_a_resumed_log_hides_what_it_writes_again(tmp_path):
    first = TensorBoardLog(tmp_path)
    for step in (1, 2, 3):
        first.scalars(step, {"loss/total": 1.0})
    first.close()
    time.sleep(1.1)  # event files are read in the order of their names, which hold whole seconds
    second = TensorBoardLog(tmp_path, purge_step=2)
    second.scalars(2, {"loss/total": 9.0})
    second.close()
    assert points(read(tmp_path), "loss/total") == [(1, 1.0), (2, 9.0)]


def test_traces_of_threads_other_than_the_writers_are_printed_and_all_again_once_the_log_is_closed(
    tmp_path, monkeypatch
):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: printed.append(failed.thread.name))

    def fail(thread_of: type[threading.Thread]) -> None:
        thread = thread_of(target=lambda: 1 / 0, name=thread_of.__name__)
        thread.start()
        thread.join()

    writer = type("Writer", (threading.Thread,), {"__module__": "tensorboard.summary.writer"})
    log = TensorBoardLog(tmp_path)
    fail(threading.Thread)
    fail(writer)
    assert printed == ["Thread"]
    log.close()
    fail(writer)
    assert printed == ["Thread", "Writer"]
