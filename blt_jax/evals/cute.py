"""CUTE (arXiv 2409.15452): what a model knows of the letters and words of a text.

Prompts are those of the authors' repository, its typing errors included; MIT licence.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from blt_jax.evals.task import Continue, Item, Request, Row, Score, Task, check_texts

_INDENT = "\n" + 12 * " "
_ANSWER = ' Answer: "'


class Prompt(NamedTuple):
  """Of one of the tasks; `examples` are questions and their answers."""

  instruction: str
  examples: tuple[str, str, str, str]
  question: str


PROMPTS = {
  "spell": Prompt(
    "Spell out the word, putting spaces between each letter, based on",
    (
      'Spell out the word "alphabet". Answer: "a l p h a b e t"',
      'Spell out the word "hello". Answer: "h e l l o"',
      'Spell out the word "zebra". Answer: "z e b r a"',
      'Spell out the word "tongue". Answer: "t o n g u e"',
    ),
    'Spell out the word "{}".',
  ),
  "spell_inverse": Prompt(
    "Write the word that is spelled out, without any spaces, based on",
    (
      'Write the word "a l p h a b e t".  Answer: "alphabet"',
      'Write the word "h e l l o". Answer: "hello"',
      'Write the word "z e b r a". Answer: "zebra"',
      'Write the word "t o n g u e". Answer: "tongue"',
    ),
    'Write the word "{}".',
  ),
  "contains_char": Prompt(
    "Answer whether the specified letter is in the given word, based on",
    (
      'Is there a "a" in "alphabet"? Answer: "Yes"',
      'Is there a "z" in "alphabet"? Answer: "No"',
      'Is there a "u" in "hello"? Answer: "No"',
      'Is there a "o" in "hello"? Answer: "Yes"',
    ),
    'Is there a "{}" in "{}"?',
  ),
  "contains_word": Prompt(
    "Answer whether the specified word is in the given sentence (case insensitive), based on",
    (
      'Is there a "the" in "The cow goes moo."? Answer: "Yes"',
      'Is there a "goat" in "The cow goes moo."? Answer: "No"',
      'Is there a "glad" in "I am very happy."? Answer: "No"',
      'Is there a "happy" in "I am very happy."? Answer: "Yes"',
    ),
    'Is there a "{}" in "{}"?',
  ),
  "orth": Prompt(
    "Select the word that is closer in Levenshtein distance to the given word based on",
    (
      'Closer in Levenshtein distance to "bold": "cold", "brave". Answer: "cold"',
      'Closer in Levenshtein distance to "computer": "completed", "laptop". '
      'Answer: "completed"',
      'Closer in Levenshtein distance to "happy": "glad, "apply". Answer: "apply"',
      'Closer in Levenshtein distance to "camp": "ramp", "tent". Answer: "ramp"',
    ),
    'Closer in Levenshtein distance to "{}": "{}", "{}".',
  ),
  "sem": Prompt(
    "Select the word that is more semantically related to the given word based on",
    (
      'More semantically related to "bold": "cold", "brave". Answer: "brave"',
      'More semantically related to "computer": "completed", "laptop". Answer: "laptop"',
      'More semantically related to "happy": "glad", "apply". Answer: "glad"',
      'More semantically related to "camp": "ramp", "tent". Answer: "tent"',
    ),
    'More semantically related to "{}": {}, {}.',
  ),
  "ins_char": Prompt(
    "Add the specified letter after every instance of the second specified letter in a given "
    "word, based on",
    (
      'Add an "e" after every "a" in "alphabet". Answer: "aelphaebet"',
      'Add an "l" after every "l" in "hello". Answer: "hellllo"',
      'Add an "t" after every "z" in "zebra". Answer: "ztebra"',
      'Add an "f" after every "u" in "tongue". Answer: "tongufe"',
    ),
    'Add an "{}" after every "{}" in "{}".',
  ),
  "ins_word": Prompt(
    "Add the specified word after every instance of the second specified word in a given "
    "sentence, based on",
    (
      'Add "bad" after every "beautiful" in "it is a beautiful day". '
      'Answer: "it is a beautiful bad day"',
      'Add "hello" after every "day" in "it is a beautiful day". '
      'Answer: "it is a beautiful day hello"',
      'Add "not" after every "i" in "i think i can do it". '
      'Answer: "i not think i not can do it"',
      'Add "can" after every "can" in "i think i can do it". Answer: "i think i can can do it"',
    ),
    'Add "{}" after every "{}" in "{}".',
  ),
  "del_char": Prompt(
    "Delete every instance of a specified letter in a given word, based on",
    (
      'Delete every instance of "a" in "alphabet". Answer: "lphbet"',
      'Delete every instance of "l" in "hello". Answer: "heo"',
      'Delete every instance of "z" in "zebra". Answer: "ebra"',
      'Delete every instance of "u" in "tongue". Answer: "tonge"',
    ),
    'Delete every instance of "{}" in "{}".',
  ),
  "del_word": Prompt(
    "Delete every instance of a specified word in a given sentence, based on",
    (
      'Delete every instance of "a" in "it is a beautiful day". Answer: "it is beautiful day"',
      'Delete every instance of "beautiful" in "it is a beautiful day". Answer: "it is a day"',
      'Delete every instance of "i" in "i think i can do it". Answer: "think can do it"',
      'Delete every instance of "can" in "i think i can do it". Answer: "i think i do it"',
    ),
    'Delete every instance of "{}" in "{}".',
  ),
  "swap_char": Prompt(
    "Swap the positions of two specified letters in a given word, based on",
    (
      'Swap "l" and "b" in "alphabet". Answer: "abphalet"',
      'Swap "h" and "e" in "hello". Answer: "ehllo"',
      'Swap "z" and "a" in "zebra". Answer: "aebrz"',
      'Swap "u" and "e" in "tongue". Answer: "tongeu"',
    ),
    'Swap "{}" and "{}" in "{}".',
  ),
  "swap_word": Prompt(
    "Swap the positions of two specified words in a given sentence, based on",
    (
      'Swap "it" and "a" in "it is a beautiful day". Answer: "a is it beautiful day"',
      'Swap "it" and "beautiful" in "it is a beautiful day". Answer: "beautiful is a it day"',
      'Swap "think" and "do" in "i think i can do it". Answer: "i do i can think it"',
      'Swap "can" and "do" in "i think i can do it". Answer: "i think i do can it"',
    ),
    'Swap "{}" and "{}" in "{}".',
  ),
  "sub_char": Prompt(
    "Substitute the first specified letter with the second specified letter in a given word, "
    "based on",
    (
      'Substitute "a" with "b" in "alphabet". Answer: "blphbbet"',
      'Substitute "h" with "e" in "hello". Answer: "eello"',
      'Substitute "z" with "a" in "zebra". Answer: "aebra"',
      'Substitute "u" with "e" in "tongue". Answer: "tongee"',
    ),
    'Substitute "{}" with "{}" in "{}".',
  ),
  "sub_word": Prompt(
    "Substitute the first specified word with the second specified word in a given sentence, "
    "based on",
    (
      'Substitute "it" with "a" in "it is a beautiful day". Answer: "a is a beautiful day"',
      'Substitute "it" with "beautiful" in "it is a beautiful day". '
      'Answer: "beautiful is a beautiful day"',
      'Substitute "i" with "do" in "i think i can do it". Answer: "do think do can do it"',
      'Substitute "think" with "can" in "i think i can do it". Answer: "i can i can do it"',
    ),
    'Substitute "{}" with "{}" in "{}".',
  ),
}


def make_prompt(task: str, inputs: Sequence[str]) -> str:
  """The prompt of a task, with or without "_rand" at its end, up to the open quote."""
  prompt = PROMPTS[task.removesuffix("_rand")]
  examples = [f"{_INDENT}{number}. {e}" for number, e in enumerate(prompt.examples, 1)]
  return (
    f"{prompt.instruction} the following examples:{_INDENT}{''.join(examples)}"
    f"{_INDENT}{_INDENT}Question: {prompt.question.format(*inputs)}{_ANSWER}"
  )


def score(task: str, output: str, label: str) -> float:
  """1 if what a model wrote after the open quote, up to the next, is the label, else 0."""
  return _compare(task, output.split('"')[0].strip(), label)


def score_by_authors(task: str, prompt: str, output: str, label: str) -> float:
  """The same by the rule of the authors' code: what stands between quotes in the end."""
  answer = (prompt + output).split("Answer:")[-1].split("</s>")[0]
  quoted = answer.split('"')[1:2]
  return _compare(task, quoted[0].strip() if quoted else "", label)


def _compare(task: str, found: str, label: str) -> float:
  if task.endswith("_word"):
    found, label = found.lower(), label.lower()
  return float(found == label)


@dataclasses.dataclass(frozen=True)
class Cute(Task):
  """All of its tasks, told apart by the field `task`."""

  def check(self, row: Row) -> None:
    """Raises ValueError where a row lacks a field, or is of no known task."""
    super().check(row)
    check_texts(row, "task")
    prompt = PROMPTS.get(row["task"].removesuffix("_rand"))
    if prompt is None or prompt.question.count("{}") != len(row["inputs"]):
      raise ValueError(
        f"has task {row['task']!r} with {len(row['inputs'])} inputs; tasks are {[*PROMPTS]}, "
        "with as many inputs as their question has gaps."
      )

  def requests(self, item: Item) -> list[Request]:
    """What stands in the quotes."""
    return [Continue(make_prompt(item.row["task"], item.row["inputs"]), (), 128)]

  def score(self, item: Item, answers: Sequence[Any]) -> Score:
    """`exact_match` by `score`, `exact_match_original` by `score_by_authors`."""
    task, label = item.row["task"], item.row["label"]
    prompt = make_prompt(task, item.row["inputs"])
    return {
      "exact_match": score(task, answers[0], label),
      "exact_match_original": score_by_authors(task, prompt, answers[0], label),
    }


_FIELDS = ("task", "inputs", "label")
TASKS = (
  Cute("cute", "cute", _FIELDS, metric="exact_match", groups=("task",)),
  Cute("cute_rand", "cute_rand", _FIELDS, metric="exact_match", groups=("task",)),
)
