"""The MNIST network, trained on the real MNIST and scored on all 10,000 test images.

    python experiments/mnist.py

99.5 % within a minute of training on two CPU cores with AVX-512 (recipe fast, see the README);
--help lists the flags.
"""

from jaxcnn.cli.run import main

if __name__ == "__main__":
    main("mnist")
