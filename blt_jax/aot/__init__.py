"""What TPUs would do with a program, found by compiling it for them without having any."""
