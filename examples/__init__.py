"""Short scripts to read and copy from; run one with `python -m examples.NAME`."""
