"""Trains the MNIST network on the real MNIST and reports its accuracy on all 10,000 test images.

    python experiments/mnist.py [--help]
"""

from jaxcnn.cli import main

if __name__ == "__main__":
    main("mnist")
