"""What a step costs: operations, chips, and what a program would do on a TPU, without a TPU."""
