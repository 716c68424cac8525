from .mesh import Placement as Placement, make_mesh as make_mesh, parse_mesh as parse_mesh
from .environment import device as device, machine as machine, versions as versions
