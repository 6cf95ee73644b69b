"""The command line of all programs: mistakes in one line, and how programs end."""

import builtins
import logging as python_logging
import os
import re

import jax
import pytest
from absl import logging

from blt_jax.cli import logs, plots, run_flags
from blt_jax.cli.parsing import Parser


@pytest.fixture(name="parser")
def _parser():
  parser = Parser("evaluate", "Does something.\n\n  an example")
  run_flags.add(parser)
  plots.add_flag(parser, "draws")
  parser.add_argument("--top_k", type=int, default=3, help="how many")
  return parser


def error_of(parser, capsys, *arguments):
  """The line that is printed; there must be one, and status 2."""
  with pytest.raises(SystemExit) as exit_:
    parser.parse_args(arguments)
  out, err = capsys.readouterr()
  assert exit_.value.code == 2 and not out and err.count("\n") == 1
  assert err.startswith("error: ")
  return err


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--rn=x"], "There is no option --rn. Did you mean --run?"),
    (["--run=x", "--top=3"], "There is no option --top. Did you mean --top_k?"),
    (["--run=x", "--colour=red"], "There is no option --colour. --help"),
    (["--run=x", "y"], "'y' belongs to no option"),
    (["--top_k=2"], "required: --run"),
    (["--run=x", "--top_k=two"], "--top_k: invalid int value: 'two'"),
    (["--run=x", "--step=newest"], "'newest' is neither the number of a step nor `best`"),
    (["--run=x", "--step=-1"], "'-1' is neither"),
    (["--run=a/b/checkpoints/20"], "give its run and its step: --run=a/b --step=20"),
    (["--run=gs://b/r/checkpoints/20/"], "give its run and its step: --run=gs://b/r --step=20"),
  ],
)
def test_mistakes_are_named_in_one_line(parser, capsys, arguments, message):
  assert message in error_of(parser, capsys, *arguments)


def test_steps_are_read(parser):
  assert parser.parse_args(["--run=a/checkpoints"]).step is None
  assert parser.parse_args(["--run", "a", "--step", "20"]).step == 20
  assert parser.parse_args(["--run=a", "--step=best"]).step == "best"


def test_help_tells_what_must_be_given_and_defaults(parser):
  text = parser.format_help()
  assert text.startswith("usage: python -m blt_jax.evaluate --run=FOLDER [options]\n")
  assert "  an example\n" in text and "how many (3)" in text and "None" not in text


# --- Figures


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("x.foo", "must end in one of .*png"),
    ("x", "must end in"),
    ("no/x.png", "a folder that ex"),
  ],
)
def test_figures_are_checked_before_the_work(parser, capsys, tmp_path, name, message):
  line = error_of(parser, capsys, "--run=x", f"--png={tmp_path}/{name}")
  assert re.search(message, line)
  assert not list(tmp_path.iterdir())


def test_a_figure_needs_a_place_and_a_library(parser, capsys, tmp_path, monkeypatch):
  (tmp_path / "folder.png").mkdir()
  assert "must be a file" in error_of(parser, capsys, "--run=x", f"--png={tmp_path}/folder.png")
  monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
  assert "cannot be written" in error_of(parser, capsys, "--run=x", f"--png={tmp_path}/x.png")
  monkeypatch.undo()
  real = builtins.__import__

  def without_matplotlib(name, *arguments):
    if name.startswith("matplotlib"):
      raise ImportError(name)
    return real(name, *arguments)

  monkeypatch.setattr(builtins, "__import__", without_matplotlib)
  assert "pip install" in error_of(parser, capsys, "--run=x", f"--png={tmp_path}/x.png")


def test_letters_without_a_font_are_drawn_as_code_points(caplog):
  labels, fonts = plots.with_fonts(["a", "", r"\xff", "\U000e0fff"])
  assert labels == ["a", "", r"\xff", "U+E0FFF"] and fonts[0] == "DejaVu Sans"
  assert "No installed font has" in caplog.text
  assert plots.with_fonts(["ß", "Д"]) == (["ß", "Д"], ["DejaVu Sans"])


# --- How programs end


@pytest.mark.parametrize(
  "error",
  [
    ValueError("it is wrong"),
    FileNotFoundError("it is wrong"),
    FloatingPointError("it is wrong"),
    jax.errors.JaxRuntimeError("it is wrong"),
  ],
)
def test_a_mistake_ends_with_its_message(error):
  def fail():
    raise error

  with pytest.raises(SystemExit) as exit_:
    logs.run(fail)
  assert exit_.value.code == "error: it is wrong"


def test_a_fault_of_ours_keeps_its_traceback():
  with pytest.raises(ZeroDivisionError):
    logs.run(lambda: 1 // 0)


@pytest.mark.parametrize(("value", "code"), [(None, None), (3, 3), ("error: x", "error: x")])
def test_the_status_is_what_the_program_returns(value, code):
  with pytest.raises(SystemExit) as exit_:
    logs.run(lambda: value)
  assert exit_.value.code == code


def test_messages_are_ours_and_warnings_of_others(capsys):
  logs.show_progress()
  logs.show_progress()
  other = python_logging.getLogger("somebody")
  try:
    logging.info("of a file outside the package")
    plots.with_fonts(["\U000e0fff"])
    other.warning("a library warns")
  finally:
    python_logging.getLogger().removeHandler(logs._CONSOLE)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 2 and "No installed font" in lines[0] and "library warns" in lines[1]


@pytest.mark.parametrize("metavar", ["PATH", "FOLDER", "FILE"])
def test_paths_are_not_empty(metavar, capsys):
  parser = Parser("test", "Does something.")
  parser.add_argument("--data", metavar=metavar)
  assert parser.parse_args(["--data=a"]).data == "a"
  with pytest.raises(SystemExit):
    parser.parse_args(["--data="])
  assert "--data is empty; give a path" in capsys.readouterr().err
