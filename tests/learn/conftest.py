"""What every test of training leaves as it was."""

import pytest
import torch


@pytest.fixture(autouse=True)
def threads():
    """One thread; a recipe's number holds for the process, so give back what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny maps: a second thread costs more than it does
    yield
    torch.set_num_threads(before)
