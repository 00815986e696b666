"""Draw the same numbers in every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_on_one_thread():
    """The networks here are so small that a second thread costs more than it brings on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
