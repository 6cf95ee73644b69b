"""Settings on the command line, and what --help says of them."""

import pathlib

import pytest
from absl import flags

from blt_jax import config, kinds
from blt_jax.cli.parsing import Parser
from blt_jax.runs import settings_flags, settings_help


@pytest.fixture(name="file")
def _file(tmp_path):
  """Writes a file of settings; its path."""

  def write(body="", name="settings.py"):
    path = tmp_path / name
    lines = [
      "from blt_jax.config import get_config as get_default",
      "def get_config(kind='blt'):",
    ]
    path.write_text(
      "\n".join([*lines, "  config = get_default(kind)", f"  {body}", "  return config"])
    )
    return str(path)

  return write


# --- Changes


def test_values_are_changed_in_every_form(file):
  settings = settings_flags.load(
    file(),
    [
      "--config.data.seq_len=12", "--config.data.path", "a b=c: d",
      "--noconfig.logging.tensorboard", "--config.model.hash_sizes=(3,4)",
      "--config.data.mixture={'web': ('x', 2.0)}",
      "--config.optimizer.learning_rate=1", "--config.patching.threshold=2",
    ],
  )  # fmt: skip
  assert settings.data.seq_len == 12 and settings.data.path == "a b=c: d"
  assert settings.logging.tensorboard is False and settings.model.hash_sizes == (3, 4)
  assert settings.data.mixture.web == ("x", 2.0) and settings.patching.threshold == 2.0
  assert settings.optimizer.learning_rate == 1.0
  assert flags.FLAGS.is_parsed()  # or worker processes of the data do not start


def test_an_argument_chooses_among_the_settings_of_a_file(file):
  assert settings_flags.load(f"{file()}:byte_lm").model.kind == "byte_lm"


def test_files_of_one_name_are_told_apart(file, tmp_path):
  first = settings_flags.load(file("config.seed = 1"))
  assert (first.seed, settings_flags.load(file("config.seed = 2")).seed) == (1, 2)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.data.pth=x", r"config.data.pth is no setting. Did you mean config.data.path\?"),
    ("--config.pth=x", r"Did you mean config.data.path\?.*train --help"),
    ("--config.batch_size=3", r"Did you mean config.data.batch_size\?"),
    ("--config.data=3", "config.data is a section; set what is in it, such as config.data.b"),
    ("--config.data.seq_len=abc", "config.data.seq_len=abc: it must be a whole number"),
    ("--config.data.seq_len=1.5", "it must be a whole number"),
    ("--config.optimizer.learning_rate=x", "it must be a number"),
    ("--config.logging.tensorboard=maybe", "it must be true or false"),
    (
      "--config.init_parts={'latent': 'transformer'",
      r"init_parts={'latent': 'transformer': it must be a dict, such as \"{'latent': 'tra",
    ),
    ("--config.data.mixture=3", "it must be a dict, such as"),
    ("--config.data.mixture={1: ('a', 1.0)}", "names a source 1; give it a word"),
    ("--config.data.mixture={'': ('a', 1.0)}", "names a source ''; give it a word"),
    ("--config.model.hash_sizes=abc", r"\('abc',\); it must hold whole numbers"),
    ("--config.data.seq_len", "Missing value for flag"),
    ("--noconfig.data.seq_len", "noconfig.data.seq_len"),
    ("seq_len", "'seq_len' is no setting; write --config.NAME=VALUE"),
  ],
)
def test_wrong_changes_are_named(file, override, message):
  with pytest.raises(ValueError, match=message) as error:
    settings_flags.load(file(), [override])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("body", "message"),
  [
    (
      "config.data.pth = 'x'",
      r"settings.py: config.data.pth is no setting. .*config.data.path",
    ),
    ("config.data.seq_len = 'x'", "settings.py fails: TypeError: Could not override"),
    ("raise ValueError('Unknown size')", "settings.py fails: Unknown size$"),
    ("config = None", "get_config gives no ConfigDict"),
    ("config.model.kind = 'gpt'", "config.model.kind is 'gpt'; choose"),
    ("if", "settings.py fails: SyntaxError: invalid syntax"),
  ],
)
def test_wrong_files_are_named(file, body, message):
  with pytest.raises(ValueError, match=message) as error:
    settings_flags.load(file(body))
  assert "\n" not in str(error.value)


def test_a_section_may_be_left_out_and_a_mixture_named_at_will(file):
  assert (
    settings_flags.load(file("config.model.encoder_cross = None")).model.encoder_cross is None
  )
  path = file("config.data.mixture.web = ('a', 1.0)")
  changed = settings_flags.load(path, ["--config.data.mixture.web=('b', 1.0)"])
  assert changed.data.mixture.web == ("b", 1.0)


def test_a_missing_file_and_the_nearest(file, tmp_path):
  file(name="quickstart.py")
  with pytest.raises(FileNotFoundError, match=r"Did you mean quickstart.py\?"):
    settings_flags.load(f"{tmp_path}/quickstrt.py:blt")
  with pytest.raises(FileNotFoundError, match="There is no file of settings .*nowhere/x.py"):
    settings_flags.load(f"{tmp_path}/nowhere/x.py")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "give the settings, such as --config=configs/quickstart.py"),
    (["--confg=x"], "There is no option --confg. Did you mean --config?"),
  ],
)
def test_wrong_options_end_the_program(arguments, message, capsys):
  with pytest.raises(SystemExit) as exit_:
    settings_flags.parse(Parser("train", "Trains."), arguments)
  assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_other_options_and_settings_mix(file):
  parser = Parser("train_compile", "Compiles.")
  parser.add_argument("--slices", type=int)
  arguments = [
    "--config.data.seq_len",
    "12",
    f"--config={file()}",
    "--slices=2",
    "--config.seed=3",
  ]
  args, settings = settings_flags.parse(parser, arguments)
  assert (args.slices, settings.data.seq_len, settings.seed) == (2, 12, 3)


# --- Help


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_every_setting_says_what_it_means(kind):
  found = settings_help.settings(kind)
  assert [s.name for s in found if not s.comment] == []
  expected = dict(settings_help.flatten(config.get_config(kind).to_dict()))
  assert {s.name: s.default for s in found} == expected


def test_comments_come_from_where_settings_are_declared():
  said = {s.name: s.comment for s in settings_help.settings()}
  assert said["data.heldout_fraction"] == "of the documents, where they are split off"
  assert said["data.num_streams"].startswith("Rows come from so many independent streams")
  assert said["data.num_streams"].endswith("None: as the run began, first one each.")
  assert said["patching.threshold"] == "nats; None: what calibrate found"
  assert said["optimizer.beta1"] == "decay of the mean of gradients."
  assert said["model.latent.window"].startswith("positions that attention sees")
  names = list(said)
  assert names[0] == "workdir" and names.index("data.path") < names.index("model.dtype")


def test_the_page_of_settings_is_up_to_date():
  page = pathlib.Path(__file__).parents[2] / "docs" / "settings.md"
  is_same = page.read_text(encoding="utf-8") == settings_help.to_markdown()
  assert is_same, "make it anew: PYTHONPATH=. python tests/manual/settings_page.py"


def test_help_lists_the_settings(capsys):
  with pytest.raises(SystemExit):
    settings_flags.parse(Parser("train", "Trains."), ["--help"])
  out = capsys.readouterr().out
  assert "  --config.data.seq_len=4096\n        S, byte slots in a row\n" in out
  assert "  --config.model.latent.remat='none'\n        as model.encoder.remat\n" in out
  assert max(map(len, out.splitlines())) <= 96


def test_help_lists_the_settings_of_the_files_kind_of_model(capsys):
  file = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.py"
  with pytest.raises(SystemExit):
    settings_flags.parse(Parser("train", "Trains."), ["--help", f"--config={file}:megabyte"])
  out = capsys.readouterr().out
  assert "the defaults of a megabyte" in out and "--config.model.global_model.dim=" in out
