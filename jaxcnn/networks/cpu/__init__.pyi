from .stages import Stage as Stage
from .convolution import conv_general_dilated as conv_general_dilated
from .pooling import avg_pool as avg_pool, max_pool as max_pool
from .features import in_stages as in_stages
