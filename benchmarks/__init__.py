"""What is measured: speed, and the results table. Each file runs as `python -m benchmarks.NAME`."""
