"""From raw public files, or from nothing, to `datasets` splits with a dataset card."""
