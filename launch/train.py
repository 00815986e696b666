"""The program that a launcher starts on every rank: deepspeed, torchrun, srun, accelerate or plain python."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone that is not installed

if __name__ == "__main__":
    # Threads that wait for each other keep their cores busy for milliseconds by default. Where other programs want
    # these cores, training takes many times as long. It is read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    from dist_prune.cli import train_main

    train_main(sys.argv[1:])
