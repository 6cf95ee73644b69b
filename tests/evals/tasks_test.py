"""Requests and scores of tasks, without a model: prompts by hand, numbers by NumPy."""

import math

import numpy as np
import pytest

from blt_jax.evals import cute, g2p, noise, suite
from blt_jax.evals.task import Choice, Continue, Text

HELLASWAG = {"ctx": "A man sits", "endings": ["down.", "up in a tree.", "é", "on"], "label": 1}
ARC = {"question": "Why?", "choices": ["x", "yy", "zzz"], "label": 2}
PIQA = {"goal": "To sit", "sol1": "sit ", "sol2": "stand", "label": 0}


def ask(name, row, shots=None):
  return suite.requests(name, [row], shots)[0]


def test_prompts_of_choices():
  assert ask("hellaswag", HELLASWAG) == [
    Choice("A man sits", (" down.", " up in a tree.", " é", " on"))
  ]
  assert ask("arc_easy", ARC) == [Choice("Question: Why?\nAnswer:", (" x", " yy", " zzz"))]
  assert ask("piqa", PIQA) == [Choice("Question: To sit\nAnswer:", (" sit ", " stand"))]
  assert ask("blimp", {"uid": "a", "good": "She is.", "bad": "She are."}) == [
    Choice("", (" She is.", " She are."))
  ]
  assert ask("lambada", {"text": "the end of the road"}) == [
    Choice("the end of the", (" road",))
  ]
  assert ask("bpb", {"text": " all "}) == [Text(" all ")]


def test_prompt_of_mmlu_has_the_shots_of_its_subject():
  row = {"subject": "world_religions", "question": " Who? ", "choices": [*"wxyz"], "label": 3}
  other = row | {"subject": "law"}
  shots = [other, *(row | {"question": f"Q{i}", "label": i % 4} for i in range(7))]
  (asked,) = ask("mmlu", row, shots)
  head = "The following are multiple choice questions (with answers) about world religions.\n\n"
  choices = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
  examples = "".join(f"Q{i}{choices} {'ABCD'[i % 4]}\n\n" for i in range(5))
  assert asked == Choice(f"{head}{examples}Who?{choices}", (" A", " B", " C", " D"))
  assert ask("mmlu", row)[0].context == f"{head}Who?{choices}"


def test_scores_of_choices():
  answers = [(-4.0, False), (-9.0, False), (-3.0, False), (-3.0, True)]
  by_row, summary = suite.scores("hellaswag", [HELLASWAG] * 2, [[answers], [answers]])
  # Largest: the third, the first of equals. Per character: -0.8, -0.69, -3, -1.5; per byte
  # -0.8, -0.69, -1.5, -1.5.
  assert by_row[0] == {"acc": 0.0, "acc_norm": 1.0, "acc_bytes": 1.0}
  assert summary["acc_norm"] == (1.0, 0.0)


def test_characters_are_no_bytes():
  row = {"ctx": "", "endings": ["éé", "eee"], "label": 0}
  by_row, _ = suite.scores("hellaswag", [row], [[[(-4.0, False), (-5.0, False)]]])
  assert by_row[0] == {"acc": 1.0, "acc_norm": 0.0, "acc_bytes": 1.0}


def test_means_have_the_error_of_a_sample():
  rng = np.random.default_rng(0)
  right = rng.random(50) < 0.3
  answers = [[[(-1.0, False), (-2.0 if r else -0.5, False)]] for r in right]
  _, summary = suite.scores("piqa", [PIQA] * 50, answers)
  value, error = summary["acc"]
  np.testing.assert_allclose(value, right.mean(), rtol=1e-12)
  np.testing.assert_allclose(error, right.std(ddof=1) / 50**0.5, rtol=1e-12)
  assert math.isnan(suite.scores("piqa", [PIQA], [answers[0]])[1]["acc"].error)


def test_perplexity_and_bits_per_byte():
  rows = [{"text": "a b"}, {"text": "c d"}, {"text": "e f"}]
  by_row, summary = suite.scores("lambada", rows, [[[(-x, x < 2)]] for x in (1.0, 2.0, 6.0)])
  assert [s["acc"] for s in by_row] == [1, 0, 0]
  np.testing.assert_allclose(summary["perplexity"].value, math.exp(3), rtol=1e-12)
  rows = [{"text": "aé"}, {"text": "b" * 5}]
  _, summary = suite.scores("bpb", rows, [[-math.log(2) * 4], [-math.log(2) * 12]])
  np.testing.assert_allclose(summary["bits_per_byte"].value, 2.0, rtol=1e-12)


GSM8K = {"question": "2 + 2?", "answer": "It is 4.\n#### 1,004"}


@pytest.mark.parametrize(
  ("output", "strict", "flexible"),
  [
    (" So\n#### 1004", 1, 1),
    ("#### $1,004.", 0, 1),  # a dollar sign is no part of the strict pattern
    ("#### 7\n#### 1004", 0, 1),
    ("it is 1004. The rest is 3", 0, 0),
    ("#### 1004 and 3", 1, 0),
    ("1,004.", 0, 1),
    ("", 0, 0),
  ],
)
def test_numbers_of_gsm8k(output, strict, flexible):
  by_row, _ = suite.scores("gsm8k", [GSM8K], [[output]])
  assert by_row[0] == {"exact_match": strict, "exact_match_flexible": flexible}


def test_prompt_of_gsm8k():
  (asked,) = ask("gsm8k", GSM8K, [GSM8K | {"question": "Q"}])
  assert asked == Continue(
    "Question: Q\nAnswer: It is 4.\n#### 1,004\n\nQuestion: 2 + 2?\nAnswer:",
    ("Question:", "\n\n"),
    1024,
  )


def test_prompt_of_g2p_and_its_first_line():
  row = {"word": "cat", "phonemes": "K AE1 T"}
  (asked,) = ask("g2p", row, [{"word": "a", "phonemes": "AH0"}])
  assert asked.prompt == "Word: a\nPhonemes: AH0\n\nWord: cat\nPhonemes:"
  by_row, _ = suite.scores("g2p", [row], [["\n K AE1 T\n\nWord: x"]])
  assert by_row[0]["exact_match"] == 1


@pytest.mark.parametrize(
  ("output", "exact", "plain", "rate"),
  [
    ("K AE1 T", 1, 1, 0),
    ("K AE0 T", 0, 1, 1 / 3),
    ("K T", 0, 0, 1 / 3),
    ("K AE1 T S S", 0, 0, 2 / 3),
    ("", 0, 0, 1),
    ("S AE1 K T", 0, 0, 2 / 3),
  ],
)
def test_phonemes(output, exact, plain, rate):
  score = g2p.score(output, "K AE1 T")
  assert (score["exact_match"], score["exact_match_no_stress"]) == (exact, plain)
  np.testing.assert_allclose(score["phoneme_error_rate"], rate)


def test_prompt_of_cute():
  (asked,) = ask("cute", {"task": "spell_inverse", "inputs": ["h o t"], "label": "hot"})
  indent = "\n" + " " * 12
  assert asked.prompt.startswith(
    "Write the word that is spelled out, without any spaces, based on the following examples:"
    f'{indent}{indent}1. Write the word "a l p h a b e t".  Answer: "alphabet"{indent}2. '
  )
  assert asked.prompt.endswith(
    f'4. Write the word "t o n g u e". Answer: "tongue"{indent}{indent}Question: Write the '
    'word "h o t". Answer: "'
  )
  assert asked[1:] == ((), 128)
  assert 'of "m" in "x". Answer: "' in cute.make_prompt("del_char_rand", ["m", "x"])


@pytest.mark.parametrize(
  ("task", "output", "label", "ours", "authors"),
  [
    ("spell", 'h o t"', "h o t", 1, 1),
    ("spell", "h o t", "h o t", 1, 1),
    ("spell", 'H o t"', "h o t", 0, 0),
    ("del_word", 'It is."', "it is.", 1, 1),
    ("spell", 'h o t" Answer: "x"', "h o t", 1, 0),
    ("spell", 'x" Answer: "h o t"', "h o t", 0, 1),
    ("spell", 'h o t</s>"', "h o t", 0, 1),
    ("spell", 'x" Answer: none', "", 0, 1),
  ],
)
def test_both_rules_of_cute(task, output, label, ours, authors):
  assert cute.score(task, output, label) == ours
  assert cute.score_by_authors(task, 'Question. Answer: "', output, label) == authors


def test_noises_by_hand():
  rng = np.random.default_rng(0)
  text = "The cat, é ß sat on the mat. " * 200
  assert noise.antspeak("a b", rng) == "A   B"
  assert noise.upper_case("aß b", rng) == "ASS B"
  dropped = noise.drop(text, rng)
  assert 0.88 < len(dropped) / len(text) < 0.92
  mixed = noise.random_case(text, rng)
  assert mixed.lower().replace("ss", "ß") == text.lower().replace("ss", "ß")
  letters = [c for c in mixed if c.isascii() and c.isalpha()]
  assert 0.45 < np.mean([c.isupper() for c in letters]) < 0.55
  runs = noise.repeat("ab" * 5000, rng).replace("ba", "b a").replace("ab", "a b").split()
  counts = np.bincount([len(run) for run in runs], minlength=5) / len(runs)
  assert counts[0] == 0 and counts[5:].sum() == 0
  np.testing.assert_allclose(counts[1:5], [0.8, 0.2 / 3, 0.2 / 3, 0.2 / 3], atol=0.015)


def test_noise_of_an_item_stands_alone():
  rows = [HELLASWAG, HELLASWAG | {"ctx": "Another"}]
  both, one = (
    suite.requests("hellaswag_noise", rows),
    suite.requests("hellaswag_noise", rows[1:]),
  )
  assert both[1] == one[0]
  assert len(one[0]) == 16 and one[0][0] == suite.requests("hellaswag", rows[1:])[0][0]
  clean, prompt, completion, spoiled = one[0][:4]  # antspeak
  assert prompt == Choice("A N O T H E R", clean.continuations)
  assert completion.context == "Another" and completion.continuations[0] == " D O W N ."
  assert spoiled == Choice("A N O T H E R", completion.continuations)
  other = suite.find("hellaswag_noise", seed=1)
  assert other.requests(other.load(rows[1:])[0])[4:7] != one[0][4:7]


def test_scores_of_noise_are_paired_with_the_clean_ones():
  right = [(-1.0, False), (-0.1, False), (-9.0, False), (-9.0, False)]
  wrong = [(-0.01, False), *right[1:]]
  wrong[0] = (-0.001, False)
  answers = [right, *[wrong] * 3, *[right] * 12]
  by_row, _ = suite.scores("hellaswag_noise", [HELLASWAG], [answers])
  assert by_row[0]["acc_norm_antspeak"] == 0 and by_row[0]["acc_norm_drop"] == 1
  np.testing.assert_allclose(by_row[0]["acc_norm"], 0.8)
  np.testing.assert_allclose(by_row[0]["acc_norm_difference"], -0.2)


@pytest.mark.parametrize(
  ("name", "row", "message"),
  [
    ("hellaswg", HELLASWAG, "no task 'hellaswg'; near are hellaswag"),
    ("hellaswag", {"ctx": "", "label": 0}, "Row 1 of hellaswag has no field 'endings'"),
    ("hellaswag", HELLASWAG | {"label": 4}, "label 4; .*one of its 4 choices"),
    ("hellaswag", HELLASWAG | {"label": True}, "label True"),
    ("hellaswag_noise", HELLASWAG | {"label": -1}, "Row 1 of hellaswag_noise has label -1"),
    ("lambada", {"text": "word"}, "no last word"),
    ("gsm8k", {"question": "2 + 2?", "answer": "4"}, "without '#### NUMBER'"),
    ("humaneval", {"prompt": 5, "entry_point": "f", "test": ""}, "Row 1 .*asks 5, .*no text"),
    ("mbpp", {"text": "", "code": "", "test_list": 3}, "Row 1 of mbpp has a field of another"),
    ("piqa", {"goal": None, "sol1": "a", "sol2": "b", "label": 0}, "has goal None"),
    ("cute", {"task": "spel", "inputs": ["a"], "label": ""}, "task 'spel'"),
    ("cute", {"task": "spell", "inputs": ["a", "b"], "label": ""}, "with 2 inputs"),
  ],
)
def test_rows_that_are_none(name, row, message):
  with pytest.raises(ValueError, match=message):
    suite.requests(name, [row])
