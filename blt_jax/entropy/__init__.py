"""What says how hard the next byte is: neural byte models and tables of n-grams."""
