"""What commands share: console output, flags, figures."""
