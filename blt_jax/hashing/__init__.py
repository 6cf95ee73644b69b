"""Ids of byte n-grams: rolling polynomial hashes, of pixels too, and tables of frequent ones.

An n-gram at t is the n bytes that end there; ids left of the row count as 0, and so do
those of other documents where documents are told apart.
"""

from blt_jax.hashing.hashes import PRIMES as PRIMES
from blt_jax.hashing.hashes import ngram_hash_ids as ngram_hash_ids
from blt_jax.hashing.pixels import pixel_hash_ids as pixel_hash_ids
from blt_jax.hashing.tables import TABLE_OFFSET as TABLE_OFFSET
from blt_jax.hashing.tables import NgramTable as NgramTable
from blt_jax.hashing.tables import ngram_table_ids as ngram_table_ids
