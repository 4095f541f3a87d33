"""`python -m modeling_flip.score`: the command of `modeling_flip.serving.score`."""

import sys

from .serving.score import main

if __name__ == "__main__":
    sys.exit(main())
