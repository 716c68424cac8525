from .cnn import MnistCNN as MnistCNN, Cifar10CNN as Cifar10CNN
from .inspect import (
    count_parameters as count_parameters,
    feature_maps as feature_maps,
    multiply_adds as multiply_adds,
    summary as summary,
)
from .pytorch import (
    load_state_dict as load_state_dict,
    save_state_dict as save_state_dict,
    to_state_dict as to_state_dict,
)
