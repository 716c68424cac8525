"""The two problems, MNIST and CIFAR-10: everything that is looked up by "mnist" or "cifar10"."""

# In the order of their labels.
CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
# The mean and standard deviation of each channel over CIFAR-10's training images.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
