"""Text out of a model, and scores of texts.

`language_model` makes a model ready, `generator.Generator` continues prompts,
`scoring.Scorer` gives likelihoods; `loop` holds the compiled programs.
"""
