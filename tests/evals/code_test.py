"""Tasks whose answers are programs."""

import pytest

from blt_jax.evals import suite

ROW = {
  "prompt": "def add(a, b):\n", "entry_point": "add",
  "test": "def check(candidate):\n  assert candidate(1, 2) == 3\n",
}  # fmt: skip


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
