"""Where patches start: the patching schemes of BLT as pure functions, and thresholds."""

from blt_jax.patching.checks import check_entropies as check_entropies
from blt_jax.patching.checks import is_number as is_number
from blt_jax.patching.cumulative import cumulative_rule as cumulative_rule
from blt_jax.patching.lengths import check_lengths as check_lengths
from blt_jax.patching.lengths import check_nested_lengths as check_nested_lengths
from blt_jax.patching.lengths import decoder_patch_ids as decoder_patch_ids
from blt_jax.patching.lengths import lengths_from_starts as lengths_from_starts
from blt_jax.patching.lengths import levels_of as levels_of
from blt_jax.patching.lengths import nest as nest
from blt_jax.patching.lengths import patch_ids as patch_ids
from blt_jax.patching.lengths import split_long as split_long
from blt_jax.patching.lengths import split_starts as split_starts
from blt_jax.patching.lengths import starts_from_boundaries as starts_from_boundaries
from blt_jax.patching.rules import LETTER_ID as LETTER_ID
from blt_jax.patching.rules import SCHEMES as SCHEMES
from blt_jax.patching.rules import PatchingConfig as PatchingConfig
from blt_jax.patching.rules import entropy_rule as entropy_rule
from blt_jax.patching.rules import find_boundaries as find_boundaries
from blt_jax.patching.rules import is_spacelike as is_spacelike
from blt_jax.patching.rules import nested_lengths as nested_lengths
from blt_jax.patching.rules import patch_lengths as patch_lengths
from blt_jax.patching.rules import patch_starts as patch_starts
from blt_jax.patching.rules import space_rule as space_rule
