"""Several devices and several processes: where arrays live, and who makes which part."""
