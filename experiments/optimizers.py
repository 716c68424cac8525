"""A study of optimizers: tuned on held-out training images, tested once, with error bars.

    python experiments/optimizers.py --optimizers sgd adamw muon lion --network cifar10 --epochs 5

About an hour and a half on two CPU cores; a quarter of an hour with --epochs 2 --seeds 3 and
--tune-seeds 1. --help lists the flags. The same command resumes a study that was stopped.
"""

from jaxcnn.cli.study import main

if __name__ == "__main__":
    main()
