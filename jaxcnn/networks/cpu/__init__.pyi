from .stages import Stage as Stage
from .convolution import conv_general_dilated as conv_general_dilated
from .pooling import avg_pool as avg_pool, max_pool as max_pool
from .features import train_in_stages as train_in_stages
