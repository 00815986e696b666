"""The program that a launcher starts on every rank: deepspeed, torchrun, srun, accelerate or plain python."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone that is not installed

if __name__ == "__main__":
    from dist_prune.cli.main import train_main

    train_main(sys.argv[1:])
