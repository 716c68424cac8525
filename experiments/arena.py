"""Every optimizer of optax, tuned alike and ranked, by the protocol of docs/arena.md.

    python experiments/arena.py mnist-sprint --optimizers sgd adamw muon

Some minutes for each optimizer on two CPU cores; all of them without --optimizers. --help lists the
flags. The same command continues where it was stopped.
"""

from jaxcnn.cli.arena import main

if __name__ == "__main__":
    main()
