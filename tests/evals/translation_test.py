"""Translation: prompts by hand, scores against sacrebleu called directly."""

import pytest

from blt_jax.evals import languages, suite
from blt_jax.evals.task import Continue

ROWS = [
  {"lang": "fra", "en": "The cat sits here.", "xx": "Le chat est assis ici."},
  {"lang": "deu", "en": "It is late, so go.", "xx": "Es ist spät, also geh."},
  {"lang": "zho-CN", "en": "Dogs run in the park.", "xx": "狗在公园里跑。"},
  {"lang": "jpn", "en": "I read a long book.", "xx": "私は長い本を読みます。"},
]
SHOTS = [
  {"lang": "deu", "en": "No.", "xx": "Nein."},
  *({"lang": "fr", "en": f"Yes {i}.", "xx": f"Oui {i}."} for i in range(6)),
]


def test_prompts_have_the_shots_of_their_language():
  french, german, *_ = suite.requests("translate_ntrex", ROWS, SHOTS)
  shots = "".join(f"French phrase: Oui {i}.\nEnglish phrase: Yes {i}.\n\n" for i in range(4))
  prompt = f"{shots}French phrase: Le chat est assis ici.\nEnglish phrase:"
  assert french == [Continue(prompt, ("\n",), 4 * len("The cat sits here."))]
  assert german[0].prompt.startswith("German phrase: Nein.\nEnglish phrase: No.\n\nGerman")
  (back,) = suite.requests("translate_ntrex_from_english", ROWS[2:3], SHOTS)
  prompt = "English phrase: Dogs run in the park.\nChinese phrase:"
  assert back == [Continue(prompt, ("\n",), 4 * len("狗在公园里跑。".encode()))]


def test_names_of_languages():
  names = {
    "por-BR": "Portuguese",
    "zho_Hans": "Chinese",
    "swh": "Swahili",
    "Maltese": "Maltese",
  }
  assert {code: languages.name_of(code) for code in names} == names
  assert [languages.tokenizer_of(n) for n in ("Chinese", "Thai", "Urdu")] == [
    "zh",
    "char",
    "13a",
  ]
  with pytest.raises(ValueError, match="Row 1 of translate_ntrex has language 'xx'"):
    suite.requests("translate_ntrex", [ROWS[0] | {"lang": "xx"}])


@pytest.mark.parametrize(
  ("name", "side", "part", "tokenizer"),
  [
    ("translate_tatoeba", "en", slice(0, 4), "13a"),
    ("translate_tatoeba_from_english", "xx", slice(0, 2), "13a"),
    ("translate_tatoeba_from_english", "xx", slice(2, 3), "zh"),
    ("translate_tatoeba_from_english", "xx", slice(3, 4), "char"),
  ],
)
def test_scores_are_those_of_sacrebleu(name, side, part, tokenizer):
  metrics = pytest.importorskip("sacrebleu.metrics")
  rows = ROWS[part] * 3
  wanted = [row[side] for row in rows]
  found = [f" {text[:-3]} x {text[2:6]}" for text in wanted]
  bleu, chrf = metrics.BLEU(tokenize=tokenizer), metrics.CHRF(word_order=2)
  _, summary = suite.scores(name, rows, [[text] for text in found])
  for metric, key in ((bleu, "bleu"), (chrf, "chrf++")):
    right = metric.corpus_score(found, [wanted]).score
    assert summary[key].value == pytest.approx(right, rel=1e-9) and right > 5
  task = suite.find(name)
  assert task.signatures(task.load(rows))["bleu"] == str(bleu.get_signature())


def test_errors_are_those_of_a_bootstrap():
  metrics = pytest.importorskip("sacrebleu.metrics")
  rows, found = ROWS[:2] * 20, ["The cat here.", "It is late, so go home."] * 20
  score = metrics.BLEU().corpus_score(found, [[row["en"] for row in rows]], n_bootstrap=1000)
  _, summary = suite.scores("translate_ntrex", rows, [[text] for text in found])
  assert summary["bleu"].error == pytest.approx(score._ci / 1.96, rel=0.1)


def test_perfect_and_empty_answers():
  pytest.importorskip("sacrebleu")
  _, summary = suite.scores("translate_ntrex", ROWS, [[row["en"]] for row in ROWS])
  assert summary["bleu"].value == pytest.approx(100) and summary["bleu"].error < 1e-9
  _, summary = suite.scores("translate_ntrex", ROWS, [[""] for _ in ROWS])
  assert summary["bleu"].value == summary["chrf++"].value == 0
