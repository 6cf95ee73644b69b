"""Task files for lm-evaluation-harness: its own, over the local files of the suite."""

import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import lm_eval.tasks

from blt_jax.evals import rows, samples
from blt_jax.evals.suite import TASKS

PREFIX = "blt_"
_HERE = pathlib.Path(__file__).parent
_HARNESS = pathlib.Path(lm_eval.tasks.__file__).parent


def write(data: str, folder: pathlib.Path) -> list[str]:
  """Writes a task file for each task of the harness whose rows are there.

  Args:
    data: folder of rows, or "sample".
    folder: gets the files, for `--include_path`.

  Returns:
    The names of the tasks; those of MMLU's subjects are one group.

  Raises:
    FileNotFoundError: there is no such folder, or rows of no such task.
    ValueError: a row is no JSON object.
  """
  data = samples.locate(data)
  if not data or not pathlib.Path(data).is_dir():
    raise FileNotFoundError(
      f"There is no folder {data!r}; give that of the files of `blt_jax.evaluate --tasks`."
    )
  names = []
  for template in sorted(_HERE.glob("*.yaml")):
    name = template.stem
    file = TASKS[name].file
    if not (pathlib.Path(data) / f"{file}.jsonl").is_file():
      continue
    found, shots = rows.read(data, file), rows.read_shots(data, file)
    if name == "mmlu":
      _write_mmlu(template, folder, found, shots)
    else:
      shots = shots if TASKS[name].num_shots else []
      _write_task(template, folder, name, file, found, shots)
    names.append(PREFIX + name)
  if not names:
    raise FileNotFoundError(f"{data} has rows of no task that the harness knows.")
  return names


def _write_task(
  template: pathlib.Path,
  folder: pathlib.Path,
  name: str,
  file: str,
  found: Sequence[Mapping[str, Any]],
  shots: Sequence[Mapping[str, Any]],
  **words: str,
) -> None:
  """Rows in a folder of their own, and the task file that reads them."""
  home = folder / name
  home.mkdir()
  _write_rows(home / f"{file}.jsonl", found)
  lines = [template.read_text(encoding="utf-8").rstrip()]
  split = ""
  if shots:
    _write_rows(home / "shots.jsonl", shots)
    split = f', dev: "{home}/shots.jsonl"'
    lines += [f"num_fewshot: {len(shots)}", "fewshot_split: dev"]
    lines += ["fewshot_config: {sampler: first_n}", "training_split: null"]
  elif TASKS.get(name, TASKS["mmlu"]).num_shots:
    lines += ["num_fewshot: 0", "fewshot_split: null", "training_split: null"]
  text = string.Template("\n".join(lines) + "\n")
  path = folder / f"{name}.yaml"
  path.write_text(text.substitute(harness=_HARNESS, data=home, shots=split, **words))


def _write_mmlu(template, folder, found, shots) -> None:
  subjects = sorted({row["subject"] for row in found})
  for subject in subjects:
    _write_task(
      template,
      folder,
      f"mmlu_{subject}",
      TASKS["mmlu"].file,
      [row for row in found if row["subject"] == subject],
      [row for row in shots if row["subject"] == subject][: TASKS["mmlu"].num_shots],
      subject=subject,
      words=subject.replace("_", " "),
    )
  group = {
    "group": f"{PREFIX}mmlu",
    "task": [f"{PREFIX}mmlu_{subject}" for subject in subjects],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
  }
  (folder / "mmlu.yaml").write_text(json.dumps(group))  # JSON is YAML


def _write_rows(path: pathlib.Path, found: Sequence[Mapping[str, Any]]) -> None:
  lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
  path.write_text("".join(lines), encoding="utf-8")
