"""The CIFAR-10 network, trained on the real CIFAR-10 and scored on all 10,000 test images.

    python experiments/cifar10.py

85.4 % within five minutes of training on two CPU cores with AVX-512 (recipe fast, see the
README); --help lists the flags.
"""

from jaxcnn.cli.run import main

if __name__ == "__main__":
    main("cifar10")
