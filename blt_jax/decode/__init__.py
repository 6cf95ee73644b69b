"""Text out of a model, and scores of texts.

`language_model` makes a model ready, `Generator` continues prompts, `Scorer` gives
likelihoods; `loop` holds the compiled programs.
"""

from blt_jax.decode.drafting import Drafting as Drafting
from blt_jax.decode.generation import Generation as Generation
from blt_jax.decode.generator import Generator as Generator
from blt_jax.decode.sampling import Sampling as Sampling
from blt_jax.decode.scoring import Scorer as Scorer
