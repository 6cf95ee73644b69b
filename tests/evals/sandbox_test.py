"""Programs that pass, that do not, and that try to get round their limits."""

import errno
import os
import subprocess
import sys
import time

import jax
import psutil
import pytest
from waiting import eventually

from blt_jax.evals import sandbox
from blt_jax.evals.sandbox import Way


@pytest.mark.parametrize(
  ("program", "outcome"),
  [
    ("x = 1", "passed"),
    ("x = 2", "failed"),
    ("x = (", "failed"),
    ("x = 1\nimport sys\nsys.exit(0)", "failed"),
    ("import os\nos._exit(0)", "failed"),
    ("print('passed')\nraise SystemExit", "failed"),
    ("x = 1\nimport sys\nsys.stdout = sys.stderr = None", "passed"),
    ("x = 1\nimport os\nos.chdir('/')\nos.close(1)", "passed"),
    ("while True: pass", "timed out"),
    ("import time\ntime.sleep(60)", "timed out"),
    ("x = [bytearray(10**7) for _ in range(10**6)]", "out of memory"),
    ("open('a', 'wb').write(bytes(10**8))", "failed"),
    ("import os\nassert not os.environ.get('HOME') and os.listdir('.') == []\nx = 1", "passed"),
    ("x = 1 # \ud800", "failed"),
  ],
)
def test_outcomes(program, outcome):
  timeout_s = 2 if outcome == "timed out" else 60
  assert sandbox.run_program(program, "assert x == 1", timeout_s) == outcome


_THREADS = "threading.Thread(target=time.sleep, args=(0.3,))"


@pytest.mark.parametrize(
  "program",
  [
    f"import threading, time\nfor _ in range(40):\n  {_THREADS}.start()",
    "import os\nif os.fork():\n  os.wait()",  # both reach the end
    "def open(bracket): return bracket in '([{'",
    "from os import *",
    "from __future__ import annotations",
  ],
)
def test_right_programs_pass_whatever_they_do(program):
  assert sandbox.run_program(f"{program}\nx = 1", "assert x == 1", timeout_s=60) == "passed"


def test_without_its_runner_a_program_ends_in_time(tmp_path):
  program = "import time; time.sleep(99)"
  act = f"from blt_jax.evals import sandbox; sandbox.run_program({program!r}, '', 2)"
  environment = os.environ | {"TMPDIR": str(tmp_path)}

  def running():
    commands = [p.info["cmdline"] or [] for p in psutil.process_iter(["cmdline"])]
    return [c for c in commands if c[1:2] == ["-I"] and str(tmp_path) in c[-1] and len(c) == 3]

  with subprocess.Popen([sys.executable, "-c", act], env=environment) as runner:
    eventually(lambda: running() and not time.sleep(0.5) and running())  # it is no trial
    runner.kill()
  eventually(lambda: not running())


def test_what_a_program_started_ends_with_it():
  name = "blt_jax_left_behind"
  child = f"import time; name = '{name}'; time.sleep(60)"
  program = (
    f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}], "
    "start_new_session=True)\nx = 1"
  )
  assert sandbox.run_program(program, "assert x == 1", timeout_s=5) == "passed"
  if not sandbox._best_way().namespaces:
    pytest.skip("this kernel gives no namespaces to users, and what leaves the group stays")
  time.sleep(0.2)
  commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
  assert not [command for command in commands if any(name in part for part in command)]


def test_without_namespaces_limits_hold(monkeypatch):
  monkeypatch.setattr(sandbox, "_best_way", Way)
  assert sandbox.run_program("x = 1", "assert x == 1") == "passed"
  assert sandbox.run_program("while True: pass", "", timeout_s=1) == "timed out"
  assert sandbox.run_program("x = bytearray(10**11)", "") == "out of memory"


def test_other_threads_of_the_user_take_no_process_of_a_program():
  assert sandbox._num_tasks(os.getuid()) >= psutil.Process().num_threads() >= 1


def test_a_launcher_that_fails_is_no_program_that_failed(monkeypatch):
  monkeypatch.setattr(sandbox, "_best_way", lambda: Way(("--no-such-flag",)))
  with pytest.raises(OSError, match="cannot be started.*no-such-flag"):
    sandbox.run_program("x = 1", "assert x == 1")


@pytest.fixture(name="fresh")
def _fresh():
  best = sandbox._best_way()
  sandbox._best_way.cache_clear()
  yield best
  sandbox._best_way.cache_clear()


def test_a_full_disk_costs_no_limits_later(fresh, monkeypatch):
  with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
    patched.setattr(sandbox.tempfile, "mkdtemp", _full)
    sandbox.run_program("x = 1", "")
  assert sandbox._best_way() == fresh


def _full():
  raise OSError(errno.ENOSPC, "No space left on device")


def test_what_a_machine_does_not_give_is_said(fresh, monkeypatch, caplog):
  monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
  assert not sandbox._best_way().namespaces
  assert "Here programs that a model wrote can write wherever" in caplog.text


def test_where_nothing_starts_there_is_an_error_each_time(fresh, monkeypatch):
  monkeypatch.setattr(sandbox.sys, "executable", "/bin/false")
  for _ in range(2):
    with pytest.raises(OSError, match="Programs cannot be started"):
      sandbox.run_program("x = 1", "")


@pytest.mark.parametrize("limit", ["timeout_s", "memory_bytes", "file_bytes", "disk_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("inf")])
def test_limits_that_are_none(limit, value):
  with pytest.raises(ValueError, match=f"{limit} is {value}; it must be"):
    sandbox.run_program("x = 1", "", **{limit: value})


def test_starting_a_program_does_not_fork_jax(recwarn):
  jax.devices()  # from then on it warns of forks
  assert sandbox.run_program("x = 1", "assert x == 1") == "passed"
  assert not [w for w in recwarn if "fork" in str(w.message)]


@pytest.fixture(name="confined")
def _confined():
  if not sandbox._best_way().is_confined:
    pytest.skip("this kernel lets users make no file systems")


def test_all_files_together_are_bounded_and_gone_afterwards(confined):
  program = "for name in '{}': open(name, 'wb').write(bytes(2**23))\nx = 1"
  assert sandbox.run_program(program.format("abcdefgh"), "assert x == 1") == "passed"
  assert sandbox.run_program(program.format("abcdefghi"), "assert x == 1") == "failed"
  program = "import os\nfor i in range(10**5): open(str(i), 'w')\nx = 1"
  assert sandbox.run_program(program, "assert x == 1", timeout_s=60) == "failed"


def test_nothing_outside_its_folder_can_be_written(confined, tmp_path):
  mine = tmp_path / "mine"
  mine.write_text("kept")
  tmp_path.chmod(0o777)
  for act in (f"open({str(mine)!r}, 'w')", f"os.remove({str(mine)!r})", "open('/tmp/a', 'w')"):
    assert sandbox.run_program(f"import os\n{act}", "") == "failed"
  assert mine.read_text() == "kept"
  program = "import multiprocessing, tempfile\nlock = multiprocessing.Lock()\n"
  assert sandbox.run_program(program + "tempfile.TemporaryFile()", "") == "passed"


def test_forks_are_bounded():
  program = "import os, time\nfor _ in range({}):\n  os.fork() or (time.sleep(1), os._exit(0))"
  assert sandbox.run_program(program.format(20), "") == "passed"
  if os.getuid() == 0 and sandbox._best_way().user is None:
    pytest.skip("nobody may not run this Python, and root may fork as it likes")
  assert sandbox.run_program(program.format(300), "") == "failed"
