"""A study of optimizers: tuned on held-out training images, tested once, with error bars.

    python experiments/optimizers.py --optimizers sgd adamw muon lion --network cifar10 --epochs 5

As it stands, some hours on two CPU cores; with --epochs 2 --seeds 3 --tune-seeds 1, half an hour (muon
three times as long a step). --help lists the flags. The same command goes on with a stopped study.
"""

from jaxcnn.study_cli import main

if __name__ == "__main__":
    main()
