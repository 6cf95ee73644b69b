"""What processes agree on, as far as one process shows it; see also multiprocess_test.py."""

import os
import signal
import subprocess
import sys

import grain
import numpy as np
import pytest
from tiny_runs import tiny_config

from blt_jax.data.row_streams import RowStreams
from blt_jax.parallel import distributed, sharding
from blt_jax.parallel.host_share import HostShare, host_share
from blt_jax.runs import folder


@pytest.mark.parametrize(
  "variables",
  [
    dict(JAX_NUM_PROCESSES="2"),
    dict(JAX_COORDINATOR_ADDRESS="here:1", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID="one"),
  ],
)
def test_half_a_group_of_variables_is_an_error(variables, monkeypatch):
  monkeypatch.setattr(signal, "signal", lambda *args: None)
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match="JAX_PROCESS_ID must all be set"):
    distributed.start()


def test_a_process_alone_agrees_with_itself():
  distributed.check_same(folder.to_plain(tiny_config("byte_lm")))
  assert distributed.gather({"a": [1]}) == [{"a": [1]}]
  with pytest.raises(KeyError), distributed.failing_together():
    raise KeyError("its own error")


def test_all_are_told_who_differs_in_what(monkeypatch):
  usual = {"the code": "0", "config.seed": "1", "config.data": "2"}
  other = usual | {"config.seed": "3", "config.data": "4"}
  monkeypatch.setattr(distributed, "gather", lambda value: [usual, usual, other, usual])
  with pytest.raises(ValueError, match="process 2 in config.data, config.seed differs"):
    distributed.check_same(folder.to_plain(tiny_config("byte_lm")))


def test_all_raise_what_one_does(monkeypatch):
  monkeypatch.setattr(distributed, "gather", lambda value: [value, "OSError: no disk"])
  with (
    pytest.raises(RuntimeError, match="process 1: OSError: no disk"),
    distributed.failing_together(),
  ):
    pass


def test_sigterm_is_seen_at_the_next_step():
  program = (
    "import os, signal; from blt_jax.parallel import distributed; distributed.start(); "
    "assert not distributed.preempted(1); os.kill(os.getpid(), signal.SIGTERM); "
    "assert distributed.preempted(2)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def test_one_process_makes_all_rows():
  share = host_share(16, sharding.make_mesh())
  assert (share.index, share.count) == (0, 1)
  np.testing.assert_array_equal(share.rows, np.arange(16))
  assert share.streams(4) == range(4)


def test_shares_divide_the_streams():
  shares = [HostShare(index, 2, np.arange(4)) for index in range(2)]
  assert [list(share.streams(6)) for share in shares] == [[0, 1, 2], [3, 4, 5]]


def _stream(number):
  rows = grain.MapDataset.range(10 * number, 10 * number + 6)
  return rows.map(lambda x: {"x": np.array([x])}).to_iter_dataset().batch(2)


def test_rows_of_streams_stand_together_and_resume_by_number():
  batches = iter(RowStreams({1: _stream(1), 0: _stream(0)}))
  assert next(batches)["x"].ravel().tolist() == [0, 1, 10, 11]
  state = batches.get_state()
  assert sorted(state) == ["0", "1"]
  other = iter(RowStreams({1: _stream(1)}))  # another process, with one of them
  other.set_state(state)
  assert next(other)["x"].ravel().tolist() == [12, 13]
  assert next(batches)["x"].ravel().tolist() == [2, 3, 12, 13]


@pytest.mark.parametrize(
  ("error", "last_line"),
  [("OSError('full')", "error: full"), ("ValueError('wrong')", "ValueError: wrong")],
)
def test_an_error_of_a_disk_is_the_last_that_is_heard(error, last_line):
  code = f"""
import atexit
from blt_jax.parallel import distributed
atexit.register(print, "told at the exit")
with distributed.ending_together():
  raise {error}
"""
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert result.returncode == 1
  assert result.stderr.splitlines()[-1] == last_line
  assert bool(result.stdout) == (last_line != "error: full")
