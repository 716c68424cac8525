from .curves import plot_curves as plot_curves
from .frame import make_frame as make_frame
from .html import render as render
from .series import Curves as Curves
