"""Documents into rows of S byte slots and P patch slots."""
