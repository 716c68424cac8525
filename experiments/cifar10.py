"""Trains the CIFAR-10 network on the real CIFAR-10 and reports its accuracy on all 10,000 test images.

    python experiments/cifar10.py [--help]
"""

from jaxcnn.cli import main

if __name__ == "__main__":
    main("cifar10")
