"""The paper's full-size MovieLens-1M on a machine with a GPU that has PyTorch and no network."""
