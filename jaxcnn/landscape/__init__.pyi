from .curvature import (
    extreme_eigenvalues as extreme_eigenvalues,
    hessian_product as hessian_product,
)
from .loss import make_batches as make_batches, make_loss as make_loss, mean_over as mean_over
from .noise import GradientNoise as GradientNoise, gradient_noise as gradient_noise
from .slices import (
    losses_along as losses_along,
    losses_on_plane as losses_on_plane,
    random_direction as random_direction,
)
from .survey import Survey as Survey, make_survey as make_survey, write_survey as write_survey
