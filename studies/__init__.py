import utils  # noqa: F401, first: Ctrl-C while it imports PyTorch ends in one line
