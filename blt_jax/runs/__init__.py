"""Everything that knows a run's folder or its settings."""
