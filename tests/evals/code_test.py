"""Programs that pass, that do not, and that try to get round their limits."""

import time

import jax
import psutil
import pytest

from blt_jax.evals import code, suite

ROW = {
  "prompt": "def add(a, b):\n", "entry_point": "add",
  "test": "def check(candidate):\n  assert candidate(1, 2) == 3\n",
}  # fmt: skip


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
  assert code.run_program(program, "assert x == 1", timeout_s) == outcome


def test_what_a_program_started_ends_with_it():
  name = "blt_jax_left_behind"
  child = f"import time; name = '{name}'; time.sleep(60)"
  program = (
    f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {child!r}], "
    "start_new_session=True)\nx = 1"
  )
  assert code.run_program(program, "assert x == 1", timeout_s=5) == "passed"
  if not code._isolation():
    pytest.skip("this kernel gives no namespaces to users, and what leaves the group stays")
  time.sleep(0.2)
  commands = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
  assert not [command for command in commands if any(name in part for part in command)]


def test_without_namespaces_limits_hold(monkeypatch):
  monkeypatch.setattr(code, "_isolation", lambda: ())
  assert code.run_program("x = 1", "assert x == 1") == "passed"
  assert code.run_program("while True: pass", "", timeout_s=1) == "timed out"
  assert code.run_program("x = bytearray(10**11)", "") == "out of memory"


def test_other_threads_of_the_user_take_no_process_of_a_program():
  assert code._num_tasks() >= psutil.Process().num_threads() >= 1


def test_a_launcher_that_fails_is_no_program_that_failed(monkeypatch):
  monkeypatch.setattr(code, "_isolation", lambda: ("unshare", "--no-such-flag"))
  with pytest.raises(OSError, match="cannot be started.*no-such-flag"):
    code.run_program("x = 1", "assert x == 1")


def test_starting_a_program_does_not_fork_jax(recwarn):
  jax.devices()  # from then on it warns of forks
  assert code.run_program("x = 1", "assert x == 1") == "passed"
  assert not [w for w in recwarn if "fork" in str(w.message)]


def test_programs_are_put_together_as_the_tasks_say():
  (asked,) = suite.requests("humaneval", [ROW])[0]
  assert asked == (ROW["prompt"], ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), 1536)
  for answer, value in (("  return a + b", 1.0), ("  return a - b", 0.0)):
    by_row, _ = suite.scores("humaneval", [ROW], [[answer]], run_code=True)
    assert by_row == [{"pass@1": value}]
  row = {"text": "Add.", "code": "def add(a, b):\r\n  return a + b", "task_id": 12,
         "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(0, 1)"],
         "test_setup_code": ""}  # fmt: skip
  (asked,) = suite.requests("mbpp", [row], [row | {"text": "Sum."}])[0]
  tests = "\n".join(row["test_list"])
  head = "You are an expert Python programmer, and here is your task: {} Your code should pass "
  parts = [
    head.format(text) + f"these tests:\n\n{tests}\n[BEGIN]\n" for text in ("Sum.", "Add.")
  ]
  assert asked == (f"{parts[0]}{row['code']}\n[DONE]\n\n{parts[1]}", ("[DONE]",), 1024)
  by_row, _ = suite.scores("mbpp", [row] * 2, [[row["code"]], ["def add(a, b): return 3"]],
                           run_code=True)  # fmt: skip
  assert [score["pass@1"] for score in by_row] == [1, 0]
  ids = [2, 10, 11, 510, 511]
  assert [r["task_id"] for r in suite.find("mbpp").select([{"task_id": i} for i in ids])] == [
    11, 510,
  ]  # fmt: skip
  rows = [row | {"task_id": "12"}]
  assert suite.find("mbpp").select(rows) == rows  # none is dropped silently
  with pytest.raises(ValueError, match="Row 1 of mbpp has task_id '12'"):
    suite.requests("mbpp", rows)


def test_nothing_runs_without_leave(tmp_path):
  with pytest.raises(ValueError, match="--run_code"):
    suite.scores("humaneval", [ROW], [["  return a + b"]])
  with pytest.raises(ValueError, match="--run_code"):
    suite.evaluate(None, ["mbpp"], str(tmp_path))
